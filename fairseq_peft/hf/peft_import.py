"""A folder of Hugging Face PEFT as the content of one of our adapter folders."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from fairseq_peft import __version__
from fairseq_peft.data import checks, targets
from fairseq_peft.errors import InputError
from fairseq_peft.hf import base_model, peft_folder, peft_match, peft_names, peft_read
from fairseq_peft.hf import config as hf_config
from fairseq_peft.hf.base_model import HEAD
from fairseq_peft.models import folder
from fairseq_peft.models.roberta import HEADS
from fairseq_peft.scores import CLASSES


class Imported(NamedTuple):
    """What ``adapters.folder.write`` takes, and the model."""

    tensors: dict[str, torch.Tensor]
    description: dict
    model: object


def load(
    path: Path,
    base: Path,
    dictionary: Path,
    labels: Sequence[str] | None = None,
    num_texts: int = 1,
    trust: bool = False,
) -> Imported:
    """The folder ``path`` of PEFT on the base checkpoint ``base``.

    Args:
        dictionary: the base's dict.txt.
        labels: class names in the order of the outputs; else those of the folder.
        num_texts: texts of a row, 1 or 2.
        trust: as ``slim.read`` takes it.

    Raises:
        InputError: a file cannot be used, they do not belong together, or the folder holds what has
            no counterpart here.
    """
    config, tensors, names, told = peft_folder.read(path)
    found = base_model.read(base, dictionary, trust)
    hf_config.check(Namespace(**found.flags))
    labels = class_names(path, tensors, labels or names)
    kind = hf_config.kind_of(told, len(labels))
    labels = targets.outputs(labels, kind)
    model = build(found, config, len(labels))
    weights = {n: t for n, t in found.weights.items() if not n.startswith(HEADS)}
    weights.update({n: t for n, t in model.state_dict().items() if n.startswith(HEADS)})
    try:
        model.load_state_dict(weights)  # which also lets the method start from the base's weights
    except InputError as error:
        raise InputError(f"{base}: {error}") from error
    peft_folder.fill(model, tensors, peft_names.table(model, HEAD), path)
    model.eval()
    reference = folder.reference(str(base), found.state["model"])
    tensors, described = folder.content(model, HEAD, reference)
    described = {
        **described,
        "labels": labels,
        **({} if kind == CLASSES else {"kind": kind}),
        "input": {
            "max_tokens": model.max_positions() - model.num_reserved,
            "begin": True,
            "num_texts": num_texts,
            "num_reserved": model.num_reserved,
            "max_positions": model.max_positions(),
        },
        "dictionary": {
            "sha256": checks.fingerprint(found.dictionary),
            "num_rows": len(found.dictionary),
        },
        "imported": {"format": "hf-peft", "config": config},
        "versions": {"fairseq_peft": __version__, "torch": torch.__version__},
    }
    return Imported(tensors, described, model)


def build(base: base_model.Base, config: dict, num_classes: int):
    """The base's model with the method that PEFT's ``config`` means, and a head, all random.

    Raises:
        InputError: the config says what has no counterpart here.
    """
    plain = base_model.build(base.flags, base.dictionary)
    peft, knobs = peft_read.as_flags(config, peft_match.places(plain))
    model = base_model.build(base.flags, base.dictionary, peft=peft, **knobs)
    model.register_classification_head(HEAD, num_classes)
    return model


def class_names(path: Path, tensors: dict, given: Sequence[str]) -> list[str]:
    """``given``, or, where nothing names the classes, LABEL_0, LABEL_1, ..., as Hugging Face does.

    Raises:
        InputError: there is no classifier, or one of another number of classes, or names repeat.
    """
    rows = [len(t) for name, t in tensors.items() if name.endswith("classifier.out_proj.bias")]
    if not rows:
        raise InputError(
            f"{path} has no classifier (classifier.out_proj), and here an adapter classifies. Save "
            "it with task_type SEQ_CLS."
        )
    names = list(given) or [f"LABEL_{number}" for number in range(rows[0])]
    if len(names) != rows[0] or len(set(names)) < len(names):
        raise InputError(
            f"{path} has a classifier of {rows[0]} classes; the names given are {', '.join(names)}."
            " Give one for each class, in the order of the outputs (--labels)."
        )
    return names
