"""A folder of Hugging Face PEFT as the content of one of our adapter folders."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch

from fairseq_peft import __version__
from fairseq_peft.checkpoints import finetuned
from fairseq_peft.data import checks, targets
from fairseq_peft.errors import InputError
from fairseq_peft.hf import (
    base_model,
    peft_beside,
    peft_folder,
    peft_match,
    peft_names,
    peft_read,
)
from fairseq_peft.hf import config as hf_config
from fairseq_peft.hf.base_model import HEAD
from fairseq_peft.models import folder
from fairseq_peft.models.roberta import HEADS
from fairseq_peft.scores import CLASSES
from fairseq_peft.tasks import stock

#: fairseq's tasks that say what languages stand around a text.
OF_LANGUAGES = ("translation_from_pretrained_bart", "translation_multi_simple_epoch")
#: What an adapter folder keeps of them.
TASK_FLAGS = (
    *("source_lang", "target_lang", "langs", "lang_pairs", "lang_tok_style"),
    *("encoder_langtok", "decoder_langtok", "prepend_bos", "seed"),
)


class Imported(NamedTuple):
    """What ``adapters.folder.write`` takes, dictionaries among the copies where they are not the
    base's file, and the model."""

    tensors: dict[str, torch.Tensor]
    description: dict
    model: object
    copies: dict[str, bytes]


def load(
    path: Path,
    base: Path,
    dictionary: Path,
    labels: Sequence[str] | None = None,
    num_texts: int = 1,
    trust: bool = False,
    languages: Mapping[str, str] | None = None,
    added: Sequence[str] = (),
) -> Imported:
    """The folder ``path`` of PEFT on the base checkpoint ``base``.

    Args:
        dictionary: the base's dict.txt.
        labels: class names in the order of the outputs; else those of the folder.
        num_texts: texts of a row, 1 or 2.
        trust: as ``slim.read`` takes it.
        languages: of an encoder-decoder, ``source_lang`` and ``target_lang``.
        added: languages that its task adds to the dictionary, where the base names none.

    Raises:
        InputError: a file cannot be used, they do not belong together, or the folder holds what has
            no counterpart here.
    """
    config, tensors, names, told = peft_folder.read(path)
    tensors = peft_read.read_there(config, tensors)
    found = base_model.read_any(base, dictionary, trust, added)
    if found.kind is not None:
        if labels or num_texts > 1:
            flag = "--labels" if labels else "--pairs"
            raise InputError(
                f"{flag} would be ignored: {base} writes text, and has no classes. Leave it out."
            )
        return _text(path, config, tensors, base, found, languages or {})
    for name, value in (languages or {}).items():
        raise InputError(
            f"--{name.replace('_', '-')} {value} would be ignored: {base} is no encoder-decoder. "
            "Leave it out."
        )
    hf_config.check(Namespace(**found.flags))
    labels = class_names(path, tensors, labels or names)
    kind = hf_config.kind_of(told, len(labels))
    labels = targets.outputs(labels, kind)
    model = build(found, config)
    model.register_classification_head(HEAD, len(labels))
    weights = {n: t for n, t in found.weights.items() if not n.startswith(HEADS)}
    weights.update({n: t for n, t in model.state_dict().items() if n.startswith(HEADS)})
    tensors, described = _filled(path, tensors, model, base, found, weights, HEAD)
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
        **_origin(config),
    }
    return Imported(tensors, described, model, {})


def _text(path, config, tensors, base, found, languages):
    """The same on an encoder-decoder."""
    model = build(found, config)
    tensors, described = _filled(path, tensors, model, base, found, found.weights, None)
    flags = task_of(found, languages)
    task = SimpleNamespace(
        source_dictionary=found.dictionary,
        target_dictionary=found.dictionary,
        cfg=None,
        args=Namespace(**flags),
    )
    words, copies = stock.words_of(task)
    described = {**described, "task": flags, **words, **_origin(config)}
    return Imported(tensors, described, model, copies)


def _filled(path, tensors, model, base, found, weights, head):
    """Tensors and description of ``model``, on the base's weights, with the tensors of PEFT."""
    try:
        model.load_state_dict(weights)  # which also lets the method start from the base's weights
    except InputError as error:
        raise InputError(f"{base}: {error}") from error
    peft_folder.fill(model, tensors, peft_names.table(model, head), path)
    model.eval()
    return folder.content(model, head, folder.reference(str(base), found.state["model"]))


def _origin(config):
    return {
        "imported": {"format": "hf-peft", "config": config},
        "versions": {"fairseq_peft": __version__, "torch": torch.__version__},
    }


def task_of(base: base_model.Base, languages: Mapping[str, str]) -> dict:
    """The flags of the task that reads and writes as the base does: its own, if that is one of
    languages; else mBART's or M2M-100's, if the dictionary has languages; else translation."""
    told = base_model.told(base.state, "task")
    name = told.get("_name") or told.get("task")
    symbols = base.dictionary.symbols
    if name in OF_LANGUAGES:
        flags = {"_name": name, **{n: told[n] for n in TASK_FLAGS if told.get(n) is not None}}
    elif base.kind.model_type == "mbart" and _inside(r"\[(\w+)\]", symbols):
        flags = {"_name": OF_LANGUAGES[0], "langs": ",".join(_inside(r"\[(\w+)\]", symbols))}
    elif base.kind.model_type == "m2m_100" and _inside(r"__(\w+)__", symbols):
        langs = _inside(r"__(\w+)__", symbols)
        own = {"langs": langs, "encoder_langtok": "src", "decoder_langtok": True, "seed": 1}
        # fairseq wants pairs, and uses them in training alone.
        flags = {"_name": OF_LANGUAGES[1], **own, "lang_pairs": f"{langs[0]}-{langs[-1]}"}
    else:
        flags = {"_name": "translation"}
    return {**flags, **languages}


def _inside(pattern, symbols):
    found = (re.fullmatch(pattern, symbol) for symbol in symbols)
    return [match[1] for match in found if match]


def build(base: base_model.Base, config: dict):
    """The base's model with the method that PEFT's ``config`` means, and no head, all random.

    Raises:
        InputError: the config says what has no counterpart here.
    """
    plain = base_model.build(base.flags, base.dictionary)
    beside = peft_beside.of(plain)
    peft, knobs = peft_read.as_flags(config, peft_match.places(plain), beside)
    return base_model.build(base.flags, base.dictionary, peft=peft, **knobs)


def load_of_folder(path: Path, base: Path, labels: Sequence[str] = ()) -> Imported:
    """The folder ``path`` of PEFT on ``base``, a folder of one of the library's own models.

    Args:
        labels: words that the model answers with, where there are few.

    Raises:
        InputError: as ``load`` does.
    """
    config, tensors, _, _ = peft_folder.read(path)
    tensors = peft_read.read_there(config, tensors)
    _, plain = finetuned.plain_of_folder(base)
    beside = peft_beside.of(plain)
    peft, knobs = peft_read.as_flags(config, peft_match.places(plain), beside)
    task, model = finetuned.plain_of_folder(base, labels, peft=peft, **knobs)
    peft_folder.fill(model, tensors, peft_names.table(model, None), path)
    reference = {"path": model.args.hf_model, "sha256": model.base_sha256}
    tensors, described = folder.content(model.eval(), None, reference)
    words, copies = stock.words_of(task)
    described = {**described, "task": stock.flags_of(task), **words, **_origin(config)}
    return Imported(tensors, described, model, copies)


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
