"""A folder of Hugging Face's library as a fairseq checkpoint, its dictionary, its tokenizer."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch

from fairseq_peft import folders
from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.checkpoints import file as checkpoint_file
from fairseq_peft.checkpoints import finetuned
from fairseq_peft.data import checks, targets
from fairseq_peft.errors import InputError, unwritten
from fairseq_peft.hf import (
    base_model,
    check,
    encoder_decoder,
    origins,
    readers,
    tokenizer,
    vocabulary,
    weights,
)
from fairseq_peft.hf import config as hf_config
from fairseq_peft.hf.base_model import HEAD
from fairseq_peft.models import norms
from fairseq_peft.scores import CLASSES
from fairseq_peft.text import bpe

CHECKPOINT = "model.pt"
#: The architecture of what stock fairseq cannot compute.
OWN_ARCH = "roberta_full"
#: Files of weights, the first that there is.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def convert(folder: Path, out: Path, *, checked: bool = True, texts: Sequence[str] = ()) -> dict:
    """Write the folder ``out`` with model.pt, dict.txt and, if it is known, what reads text
    (``readers.py``); it appears once it is whole and checked.

    Args:
        checked: whether both sides compute, and read, the same (``check.py``); needs transformers.
        texts: more texts to read on both sides, where text is read.

    Returns:
        what was written and compared: labels, tensors, whether there is an LM head, the --bpe (or
        the reason why there is none), and the largest differences.

    Raises:
        InputError: a file cannot be used, the model has no counterpart, or the sides differ.
    """
    if checked:
        check.load_transformers()
    config, tensors = read(folder)
    model_type = config.get("model_type")
    if model_type in encoder_decoder.MODEL_TYPES:
        return _encoder_decoder(folder, out, config, tensors, checked, texts)
    vocab = vocabulary.read(folder)
    if model_type != "bert":
        vocabulary.check_pad(folder, vocab)
    # What the config says of <s> and </s> nobody reads there: the tokenizer puts them.
    flags = hf_config.flags({**config, "bos_token_id": 0, "eos_token_id": 2})
    labels = hf_config.class_names(config)
    kind = hf_config.kind_of(config, len(labels)) if labels else CLASSES
    labels = targets.outputs(labels, kind)
    head = HEAD if labels else None
    tensors = origins.as_roberta(model_type, tensors, classifies=bool(labels))
    state = {name: t.float() for name, t in weights.convert_from_hf(tensors, head).items()}
    check_rows(folder, vocab, state)
    state = vocab.reorder(state)
    found = {"labels": labels, "tensors": len(state), "lm_head": weights.has_lm_head(state)}
    try:
        with folders.replaced(out) as new:
            words = _write_words(folder, vocab, new, found, texts, last=-1)
            words.add_symbol(tokenizer.MASK)
            base = base_model.Base(
                {}, state, {"_name": base_model.size(flags) or base_model.ANY_SIZE, **flags}, words
            )
            model = load(folder, base, head)
            torch.save(checkpoint(base, labels, kind), new / CHECKPOINT)
            if checked:
                batches = finetuned.random_batches(words, flags["max_positions"])
                found.update(check.models(model, head, folder, batches, vocab.ids))
                found.update(check.reading(bpe.find(new), words, folder, texts, vocab.ids))
    except OSError as error:
        raise unwritten(out, error) from error
    return found


def _encoder_decoder(folder, out, config, tensors, checked, texts):
    """``convert`` of a BART, mBART or M2M-100. dict.txt has all its words, the languages and
    ``<mask>`` as well: what fairseq's tasks would add is there already."""
    kind, flags = encoder_decoder.flags_of(config)
    state = {n: t.float() for n, t in encoder_decoder.from_hf(tensors, kind).items()}
    vocab = vocabulary.in_order(folder, len(state[encoder_decoder.WORDS[0]]))
    found = {"labels": []}
    try:
        with folders.replaced(out) as new:
            words = _write_words(folder, vocab, new, found, texts)
            model = load(folder, base_model.Base({}, state, flags, words, kind), None)
            base = base_model.Base({}, model.state_dict(), flags, words, kind)
            found["tensors"] = len(base.weights)
            torch.save(checkpoint(base, [], CLASSES), new / CHECKPOINT)
            if checked:
                start = words[config.get("decoder_start_token_id") or words.eos()]
                found.update(check.encoder_decoders(model, folder, start))
                if found["bpe"] is not None:
                    found.update(_reading(folder, bpe.find(new), words, texts))
    except OSError as error:
        raise unwritten(out, error) from error
    return found


def _write_words(folder, vocab, new, found, texts, last=None):
    """Write what reads text, and dict.txt with the symbols up to ``last``; the dictionary."""
    reader = readers.write(folder, vocab, new, strict=last is not None)
    found.update(bpe=reader.kind, reason=reader.reason)
    if texts and reader.kind is None:
        raise InputError(
            f"--check-text would be ignored: {folder} reads no text here, because {reader.reason}."
        )
    lines = reader.symbols[len(tokenizer.SPECIALS) : last]
    text = "".join(f"{line} 1\n" for line in lines)
    (new / adapter_folder.DICTIONARY).write_text(text, encoding="utf-8")
    return checks.load_dictionary(str(new / adapter_folder.DICTIONARY))


def _reading(folder, subwords, words, texts):
    """How many texts are read alike; what the tokenizer puts around a text is what it says."""
    transformers = check.load_transformers()
    around = transformers.AutoTokenizer.from_pretrained(folder)("").input_ids
    end = around.index(words.eos()) if words.eos() in around else len(around)
    ends = around[:end], around[end:]
    return check.reading(subwords, words, folder, texts, ends=ends)


def read(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """config.json, and the weights: model.safetensors, else pytorch_model.bin of older versions; of
    a large model, what the index of either names.

    Raises:
        InputError: one is missing or damaged, or holds more than tensors.
    """
    path = folder
    try:
        paths = weight_files(folder)
        if not paths or not (folder / "config.json").is_file():
            raise InputError(
                f"{folder} has no {' or '.join(WEIGHTS) if not paths else 'config.json'}. Give a "
                "folder that save_pretrained wrote."
            )
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = {}
        with checkpoint_file.mapping():
            for path in paths:
                if path.suffix == ".safetensors":
                    tensors.update(safetensors.torch.load_file(path))
                else:
                    tensors.update(torch.load(path, map_location="cpu", weights_only=True))
        if not isinstance(config, dict) or not all(map(torch.is_tensor, tensors.values())):
            raise TypeError("no table of values, or of tensors")
    except pickle.UnpicklingError as error:  # torch's text recommends the unsafe loader
        raise InputError(
            f"{path} is no file of torch's, or holds more than tensors; it is not opened, "
            f"because that could run code. Give {WEIGHTS[0]}."
        ) from error
    except InputError:
        raise
    except Exception as error:  # what damaged data raise depends on where
        raise InputError(
            f"{folder} cannot be read ({type(error).__name__}: {str(error)[:100]}). Copy it again."
        ) from error
    return config, tensors


def weight_files(folder: Path) -> list[Path]:
    """The files of weights: one, or all that an index names."""
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / Path(name).name for name in sorted(set(names))]
    return []


def check_rows(folder: Path, vocab: vocabulary.Vocabulary, state: dict) -> None:
    """Raise InputError where the model has no row for some tokens."""
    num_rows = len(state[weights.WORDS])
    if len(vocab.symbols) > num_rows:
        raise InputError(
            f"The tokenizer of {folder} has {len(vocab.symbols)} rows, its model {num_rows}. Give "
            "a folder whose tokenizer is the model's."
        )


def load(folder: Path, base: base_model.Base, head: str | None):
    """The model, with every tensor accounted for.

    Raises:
        InputError: the weights are not those of the configuration.
    """
    try:
        return base_model.load(base, head)
    except (InputError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"The weights of {folder} are not those of its config.json ({reason}). Copy it again."
        ) from error


def checkpoint(base: base_model.Base, labels: list[str], kind: str) -> dict:
    """What fairseq's loader looks for: weights, flags, and no history to go on from."""
    flags = {name: value for name, value in base.flags.items() if name != "_name"}
    # Stock fairseq would pass over the eps and compute something else: it does not know this name.
    if base.kind is None:
        stock = base.flags["layer_norm_eps"] == norms.STOCK_EPS
        arch = base.flags["_name"] if stock else OWN_ARCH
        named = {"arch": arch, "task": "masked_lm", "criterion": "masked_lm"}
    else:
        criterion = "label_smoothed_cross_entropy"
        named = {"arch": base.kind.arch, "task": "translation", "criterion": criterion}
    told = {} if kind == CLASSES else {"kind": kind}
    history = {
        "criterion_name": "",
        "optimizer_name": "",
        "lr_scheduler_state": {},
        "num_updates": 0,
    }
    return {
        "args": checkpoint_file.namespace({**named, **flags}),
        "model": base.weights,
        "task_state": {**told, "labels": labels} if labels else {},
        "optimizer_history": [history],
        "extra_state": {"train_iterator": {"epoch": 1}, "val_loss": None},
        "last_optimizer_state": None,
    }
