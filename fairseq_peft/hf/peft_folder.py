"""A folder of Hugging Face PEFT beside ours: written for one of our models, and read into one.

adapter_config.json          the method, with the keys that PEFT needs
adapter_model.safetensors    its tensors and the classifier
labels.json                  id2label and label2id of a classifier, and problem_type where a row has
                             not just one class, as from_pretrained of the base takes them

labels = json.load(open("OUT/labels.json"))
base = AutoModelForSequenceClassification.from_pretrained(BASE, **labels)
model = PeftModel.from_pretrained(base, "OUT")

Of an encoder-decoder the base is AutoModelForSeq2SeqLM's, of a language model
AutoModelForCausalLM's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

from fairseq_peft import folders
from fairseq_peft.adapters.folder import AdapterFolder
from fairseq_peft.checkpoints import finetuned
from fairseq_peft.errors import InputError, unwritten
from fairseq_peft.files import json_text
from fairseq_peft.hf import config as hf_config
from fairseq_peft.hf import encoder_decoder, peft_beside, peft_names, peft_write
from fairseq_peft.hf.peft_names import Theirs
from fairseq_peft.scores import CLASSES

CONFIG, TENSORS, LABELS = "adapter_config.json", "adapter_model.safetensors", "labels.json"
#: PEFT saves the classifier's biases three times where all biases train.
_COPIES = (".classifier.original_module.", ".classifier.modules_to_save.")


def content(found: AdapterFolder, model) -> tuple[dict, dict[str, torch.Tensor]]:
    """adapter_config.json and the tensors of an adapter folder that makes ``model`` of its base.

    Raises:
        InputError: Hugging Face's side cannot express it.
    """
    described = found.description
    if described["complete"]:
        raise InputError(
            f"{found.folder} holds a whole model, and a folder of PEFT is what stands beside a "
            "base. fairseq-peft merge makes a plain checkpoint of it."
        )
    beside, head = peft_beside.of(model), None
    if beside is peft_beside.ENCODER_DECODER:
        _check_text(found, model)
    elif beside is peft_beside.ROBERTA:
        hf_config.check(model.args)
        if not described["input"]["begin"]:
            raise InputError(
                f"{found.folder} was trained without <s> before each text (--no-init-token), and "
                "Hugging Face's tokenizers put it there. Train with it."
            )
        head = described["head"]["name"]
    config = peft_write.of_model(model)
    names = peft_names.table(model, head)
    tensors = {
        theirs.name: found.tensors[ours].reshape(theirs.shape) for ours, theirs in names.items()
    }
    return config, tensors


def _check_text(found, model):
    """Raise InputError unless the base is one of the library's encoder-decoders, and writes."""
    if not found.is_text:
        raise InputError(
            f"{found.folder} classifies with an encoder-decoder, and of those only adapters that "
            "write text can go there. fairseq-peft merge makes a plain model of it."
        )
    base = {name: t for name, t in model.state_dict().items() if name not in model.added}
    encoder_decoder.flags(found.folder, finetuned.stand_in(found.description), base)


def write(
    folder: Path, config: dict, tensors: Mapping[str, torch.Tensor], labels, kind: str = CLASSES
) -> None:
    """Make ``folder`` hold exactly this; ``labels`` are a classifier's, else None, and ``kind`` is
    that of its task.

    Raises:
        InputError: it cannot be written.
    """
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    told = {CONFIG: config}
    if labels is not None:
        told[LABELS] = hf_config.label_maps(labels, kind)
    try:
        with folders.replaced(folder) as new:
            (new / TENSORS).write_bytes(safetensors.torch.save(plain, {"format": "pt"}))
            for name, value in told.items():
                text = json_text(value, indent=2) + "\n"
                (new / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise unwritten(folder, error) from error


def read(folder: Path) -> tuple[dict, dict[str, torch.Tensor], list[str], dict]:
    """The config, the tensors, the class names (none where nothing tells), and what else
    labels.json says, of a folder of PEFT.

    Raises:
        InputError: a file is missing or damaged.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{folder} is no folder of PEFT: it has no {CONFIG}. Give the one that "
            "save_pretrained wrote."
        )
    if not (folder / TENSORS).is_file():
        raise InputError(
            f"{folder} has no {TENSORS}, and other formats are not opened, because they can hold "
            "code. Save it with PEFT's save_pretrained, whose default is safetensors."
        )
    config = _json(folder / CONFIG)
    try:
        tensors = safetensors.torch.load((folder / TENSORS).read_bytes())
    except Exception as error:  # what damaged data raise depends on where
        raise InputError(
            f"{folder / TENSORS} is damaged ({type(error).__name__}). Copy the folder again."
        ) from error
    told = _json(folder / LABELS) if (folder / LABELS).is_file() else {}
    labels = hf_config.names_of(told.get("id2label", {}), folder / LABELS)
    tensors = {n: t for n, t in tensors.items() if not any(part in n for part in _COPIES)}
    return config, tensors, labels, told


def _json(path):
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}). Copy it again.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object. Copy it again.")
    return value


def fill(model, tensors: Mapping[str, torch.Tensor], names: dict[str, Theirs], folder) -> None:
    """Copy a PEFT folder's tensors into ``model``, where ``names`` (``peft_names.table``) says.

    Raises:
        InputError: one is missing, left over, of another shape or of another type.
    """
    expected = {theirs.name: theirs.shape for theirs in names.values()}
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is left over" for name in tensors if name not in expected]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    problems += [
        f"{name} is {tensor.dtype}, which is no floating-point type"
        for name, tensor in tensors.items()
        if not tensor.is_floating_point()
    ]
    if problems:
        more = f" ({len(problems)} such tensors)" if len(problems) > 1 else ""
        raise InputError(
            f"The tensors of {folder} are not those of its {CONFIG} on this base: "
            f"{problems[0]}{more}. Give the base that it was trained on, or save it again."
        )
    state = model.state_dict()
    with torch.no_grad():
        for ours, theirs in names.items():
            state[ours].copy_(tensors[theirs.name].reshape(state[ours].shape))
