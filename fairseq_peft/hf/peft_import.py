"""A folder of Hugging Face PEFT as the content of one of our adapter folders."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch

from fairseq_peft import __version__, artifact, slim
from fairseq_peft.errors import InputError
from fairseq_peft.hf import base_model, peft_folder, peft_match, peft_names, peft_read
from fairseq_peft.hf import config as hf_config

#: fairseq's own default.
HEAD = "sentence_classification_head"


class Imported(NamedTuple):
    """What ``artifact.write`` takes, and the model."""

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
    from fairseq_peft.data import checks
    from fairseq_peft.models import folder

    config, tensors, told = peft_folder.read(path)
    state = slim.read(str(base), trust=trust)
    weights = artifact.renamed(state["model"])
    words = checks.load_dictionary(str(dictionary))
    words.add_symbol("<mask>")
    flags = base_model.flags(base, state, weights)
    num_rows = len(weights["encoder.sentence_encoder.embed_tokens.weight"])
    if len(words) != num_rows:
        raise InputError(
            f"{dictionary} gives {len(words)} rows with <mask>, and {base} has {num_rows}. Give "
            "the dictionary of the base (--dict)."
        )
    labels = list(labels or told or _numbered(tensors))
    model = build(flags, config, words, len(labels))
    hf_config.check(model.args)
    rest = {n: t for n, t in weights.items() if not n.startswith("classification_heads.")}
    try:
        model.load_state_dict(rest)  # which also lets the method start from the base's weights
    except InputError as error:
        raise InputError(f"{base}: {error}") from error
    peft_folder.fill(model, tensors, peft_names.table(model, HEAD), path)
    model.eval()
    found, described = folder.content(model, HEAD, folder.reference(str(base), state["model"]))
    longest = model.max_positions()
    described = {
        **described,
        "labels": labels,
        "input": {
            "max_tokens": longest - model.num_reserved,
            "begin": True,
            "num_texts": num_texts,
            "num_reserved": model.num_reserved,
            "max_positions": longest,
        },
        "dictionary": {"sha256": checks.fingerprint(words), "num_rows": len(words)},
        "imported": {"format": "hf-peft", "config": config},
        "versions": {"fairseq_peft": __version__, "torch": torch.__version__},
    }
    return Imported(found, described, model)


def build(flags: dict, config: dict, dictionary, num_classes: int):
    """The model of the base's ``flags`` with the method that PEFT's ``config`` means, and a head;
    its weights are random.

    Raises:
        InputError: the config says what has no counterpart here.
    """
    from fairseq import models

    task = SimpleNamespace(source_dictionary=dictionary, cfg=SimpleNamespace(seed=1))

    def built(**more):
        given = {**flags, "_name": f"{flags['_name']}_full", "precision": "fp32", **more}
        return models.build_model(Namespace(**given), task)

    peft, knobs = peft_read.as_flags(config, peft_match.places(built()))
    model = built(_name=f"{flags['_name']}_{peft}", peft=peft, **knobs)
    model.register_classification_head(HEAD, num_classes)
    return model


def _numbered(tensors):
    """Names for the classes where nothing tells them, as Hugging Face gives them."""
    rows = [len(t) for name, t in tensors.items() if name.endswith("classifier.out_proj.bias")]
    if not rows:
        raise InputError(
            "The folder has no classifier (classifier.out_proj), and here an adapter classifies. "
            "Save it with task_type SEQ_CLS."
        )
    return [f"LABEL_{number}" for number in range(rows[0])]
