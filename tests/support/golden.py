"""Golden files: what every version must compute of weights that a formula gives.

    python tests/support/golden.py            writes what is missing in tests/golden
    python tests/support/golden.py --renew    writes all of it anew

    logits.json      family -> setting -> a number that all logits of a batch go into
    adapter/         an adapter folder on ``base``, of the schema of the day it was written
    checkpoint.pt    a slim checkpoint on ``base``, likewise
    told.json        what adapter folder and checkpoint say of ``TEXTS`` and ``tokens``

A number that changes means that checkpoints of users compute something else. Only where that is
wanted are the files renewed, and the commit says why.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zlib
from pathlib import Path

import torch
from fairseq.data import Dictionary
from families import FAMILIES, Roberta
from helpers import ROOT, TINY, WORD_START, random_rows, train_flags, word_tokenizer, write_data
from settings import collect, identifier

FOLDER = ROOT / "tests" / "golden"
LOGITS, ADAPTER, CHECKPOINT, TOLD = (
    FOLDER / name for name in ("logits.json", "adapter", "checkpoint.pt", "told.json")
)
TEXTS = ["w1", "w25 w12", "w6 w24 w12 w12 w13 w24 w20 w20 w21", "w7 w7 unheard w0 w12 w5", ""]
#: What adapter folder and checkpoint were trained with.
PEFT, FLAGS = "lora", {"lora_rank": 2}
#: The head that the task registers where no flag names another.
TASK_HEAD = "sentence_classification_head"


def fixed(name: str, shape) -> torch.Tensor:
    """Numbers in [-1, 1) that depend on name and place alone: multiples of 1/128, so that no
    machine or version of torch rounds one of them otherwise."""
    index = torch.arange(torch.Size(shape).numel())
    values = (31 * index * index + 17 * index + zlib.crc32(name.encode())) % 257 - 128
    return (values / 128).reshape(shape)


def fill(model):
    """Give every tensor of ``model`` its numbers; returns the model."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    with torch.no_grad():
        for name, tensor in tensors:
            if tensor.is_floating_point():
                is_norm = tensor.dim() == 1 and name.endswith("norm.weight")
                scale = 1 / 2 if tensor.dim() > 1 else 1 / 8
                tensor.copy_(scale * fixed(name, tensor.shape) + is_norm)
    return model


def words() -> Dictionary:
    """30 words as sentencepiece writes them, and ``<mask>``."""
    found = Dictionary()
    for i in range(30):
        found.add_symbol(f"{WORD_START}w{i}", n=30 - i)
    found.add_symbol("<mask>")
    return found


def tokens(dictionary) -> torch.Tensor:
    """(4, 12) token ids with <s>, </s> and padding at the right."""
    found = (fixed("tokens", (4, 12)) * 128 + 128).long() % 30 + dictionary.nspecial
    found[:, 0] = dictionary.bos()
    for row, length in zip(found, (12, 9, 5, 3)):
        row[length - 1] = dictionary.eos()
        row[length:] = dictionary.pad()
    return found


def number(scores: torch.Tensor) -> float:
    """A sum of all scores, each with a factor of its own."""
    return (scores.double() * fixed("scores", scores.shape)).sum().item()


def number_of(family, peft: str, given: dict) -> float:
    """The golden number of a setting."""
    model = fill(family.build(peft, **given))
    with torch.no_grad():
        return number(family.scores(model, tokens(family.dictionary)))


def base() -> dict:
    """The weights that ``adapter/`` and ``checkpoint.pt`` stand on."""
    return fill(Roberta(words()).build(head=False)).state_dict()


def save_base(path: Path) -> Path:
    """Write ``base`` as a checkpoint of fairseq."""
    from fairseq_peft.checkpoints import finetuned

    finetuned.write(path, {}, {"model": {"_name": "roberta_small", **TINY}}, base())
    return path


# ---- Writing -------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--renew", action="store_true", help="write everything anew")
    renew = parser.parse_args().renew
    FOLDER.mkdir(exist_ok=True)
    found = {} if renew or not LOGITS.exists() else json.loads(LOGITS.read_text())
    for name, make in FAMILIES.items():
        family, numbers = make(words()), found.setdefault(name, {})
        for setting in collect():
            key = identifier(*setting)
            if family.takes(*setting) and key not in numbers:
                numbers[key] = round(number_of(family, *setting), 8)
                print(f"{name} {key}: {numbers[key]}")
    LOGITS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    if renew or not TOLD.exists():
        write_files()


def write_files():
    """The adapter folder, the checkpoint, and what they say."""
    from fairseq_peft import Classifier

    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        write_adapter(place)
        write_checkpoint(place)
        model = fill(Roberta(words()).build(PEFT, **FLAGS))
        scores = Roberta(words()).scores(model, tokens(words()))
        rows = Classifier.load(save_base(place / "base.pt"), ADAPTER).predict(TEXTS)
        told = {
            "labels": rows.labels,
            "probabilities": [[round(float(p), 8) for p in row] for row in rows.probabilities],
            "checkpoint": round(number(scores), 8),
        }
    TOLD.write_text(json.dumps(told, indent=1) + "\n")


def write_adapter(place):
    from fairseq_peft import __version__
    from fairseq_peft.adapters import folder as adapter_folder
    from fairseq_peft.data.checks import fingerprint
    from fairseq_peft.models import folder

    dictionary = words()
    model = fill(Roberta(dictionary).build(PEFT, **FLAGS))
    with torch.no_grad():  # or one class would win for all texts
        model.classification_heads["head"].out_proj.bias.sub_(torch.tensor([0.0, 1.09375]))
    reference = {"path": "base.pt", "sha256": adapter_folder.fingerprint(base())}
    tensors, described = folder.content(model, "head", reference)
    described.update(
        labels=["bad", "good"],
        input={"max_tokens": model.max_positions(), "begin": True, "num_texts": 1},
        dictionary={"sha256": fingerprint(dictionary), "num_rows": len(dictionary)},
        metrics={"subset": "valid", "accuracy": 0.75, "epoch": 2},
        seed=1,
        versions={"fairseq_peft": __version__},
    )
    copies = {"dict.txt": place / "dict.txt", adapter_folder.TOKENIZER: place / "pieces"}
    save_words(copies["dict.txt"])
    copies[adapter_folder.TOKENIZER].write_bytes(word_tokenizer())
    adapter_folder.write(ADAPTER, tensors, described, copies)


def save_words(path):
    """Without ``<mask>``, as data preparation leaves them."""
    found = words()
    lines = [f"{w} {n}\n" for w, n in zip(found.symbols, found.count)][found.nspecial : -1]
    path.write_text("".join(lines), encoding="utf-8")


def write_checkpoint(place):
    """Of a run of one update, with other numbers in what trained and no path of this machine."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq_cli import train

    write_data(place / "data", random_rows(), ["bad", "good"], mark=WORD_START)
    flags = train_flags(
        place / "data",
        place / "run",
        arch="roberta_small",
        peft=PEFT,
        **FLAGS,
        max_update=1,
        valid_subset="valid",
        from_scratch=None,
        finetune_from_model=save_base(place / "base.pt"),
        no_save_optimizer_state=True,
    )
    parsed = options.parse_args_and_arch(options.get_training_parser(), flags)
    train.main(convert_namespace_to_omegaconf(parsed))
    state = torch.load(place / "run" / "checkpoint_last.pt", weights_only=False)
    filled = fill(Roberta(words()).build(PEFT, **FLAGS)).state_dict()
    state["model"] = {
        name: filled[name.replace(f"{TASK_HEAD}.", "head.")] for name in state["model"]
    }
    torch.save(without(state, {str(place): "", f"{ROOT}/": ""}), CHECKPOINT)


def without(value, texts: dict):
    """``value`` with texts replaced in all strings of it."""
    if isinstance(value, str):
        for old, new in texts.items():
            value = value.replace(old, new)
        return value
    if isinstance(value, dict):
        return {key: without(one, texts) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(without(one, texts) for one in value)
    return value


if __name__ == "__main__":
    sys.exit(main())
