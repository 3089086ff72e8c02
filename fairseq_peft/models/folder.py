"""A fine-tuned model as the content of an adapter folder (``adapters/folder.py``), and back."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from types import SimpleNamespace

import torch
from fairseq import models
from omegaconf import OmegaConf

from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.adapters.folder import AdapterFolder
from fairseq_peft.data import checks
from fairseq_peft.errors import InputError
from fairseq_peft.injection import counting
from fairseq_peft.methods.base import Method, flag_name
from fairseq_peft.models import heads
from fairseq_peft.models.roberta import FAMILY, HEADS

#: What is a matter of the machine or of the start of training, and no part of a finished model.
FORGOTTEN = ("init_embeddings", "load_checkpoint_heads", "reset_head", "compile")


def content(model, head: str | None, base: dict | None) -> tuple[dict, dict]:
    """What a folder holds of ``model``: its tensors, and the part of the description that follows
    from the model.

    An MLP that only training needs is folded into what it computes.

    Args:
        head: name of the classification head; None where the model answers with text.
        base: path and sha256 of what training started from; None if from scratch.
    """
    model = _folded(model)
    tensors, complete = _tensors(model, from_scratch=base is None)
    counts = counting.count(model, HEADS)
    described = {
        "method": {
            "peft": model.setting.name,
            "knobs": model.setting.knobs(),
            "targets": targets(tensors, model.family),
        },
        "model": flags(model),
        **({} if head is None else {"head": _head(model, head)}),
        "complete": complete,
        "base": base,
        "parameters": {"method": counts.method, "head": counts.head, "total": counts.total},
    }
    return tensors, described


def _head(model, name):
    return {
        "name": name,
        "kind": heads.kind_of(model.args),
        "num_classes": model.classification_heads[name].out_proj.out_features,
    }


def num_bytes(model, from_scratch: bool) -> int:
    """The bytes of all tensors that a folder of ``model`` holds: what a task takes beside its
    base."""
    tensors, _ = _tensors(_folded(model), from_scratch)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _folded(model):
    """``model``, or a copy without what only training needs, if there is such."""
    if all(type(method).fold is Method.fold for method in model.setting):
        return model
    model = copy.deepcopy(model)
    model.fold()
    return model


def _tensors(model, from_scratch):
    """Name -> tensor of what a folder holds, and whether that is the whole model."""
    state = model.state_dict()
    own, seconds = model.own_names(), adapter_folder.aliases(state)
    complete = from_scratch or adapter_folder.body(state).keys() <= own | seconds.keys()
    own = set(state) - seconds.keys() if complete else adapter_folder.without_seconds(own, seconds)
    return {name: state[name] for name in state if name in own}, complete


def flags(model) -> dict:
    """The flags that build the model anew, defaults of its methods among them."""
    (config,) = {
        models.MODEL_DATACLASS_REGISTRY[name]
        for name, model_class in models.MODEL_REGISTRY.items()
        if model_class is type(model)
    }
    names = ["_name", *(field.name for field in fields(config))]
    found = {name: getattr(model.args, name, None) for name in names if name not in FORGOTTEN}
    # fairseq's choices are enums; what it takes from other groups is a reference: "${task.data}".
    found = {n: value.name if isinstance(value, Enum) else value for n, value in found.items()}
    found = {n: None if "${" in str(value) else value for n, value in found.items()}
    knobs = {}
    for method in model.setting:
        for field in fields(method.config):
            value = getattr(method.config, field.name)
            knobs.setdefault(flag_name(method.name, field), []).append(value)
    # Two methods that share a flag may have defaults of their own.
    found.update({flag: values[0] for flag, values in knobs.items() if len(set(values)) == 1})
    return {name: value for name, value in found.items() if value is not None}


def targets(names, family=FAMILY) -> list[str]:
    """The modules of the body that tensors of these names belong to."""
    root = f"{family.root}." if family.root else ""
    return sorted({n[len(root) :].rpartition(".")[0] for n in names if n.startswith(root)})


def build(found: AdapterFolder):
    """The model that the folder describes, with its head and random weights.

    Raises:
        InputError: the description builds no model, or the dictionary is another.
    """
    try:
        return _build(found)
    except InputError:
        raise
    except Exception as error:  # what a flag of another type raises depends on where
        raise InputError(
            f"{found.folder} describes no model ({type(error).__name__}: {error}). Copy it again, "
            "or load it with the version of fairseq_peft that wrote it."
        ) from error


def _build(found):
    description = found.description
    if found.is_text:
        words = [
            _dictionary(found.folder / told["file"], told)
            for told in map(description["dictionaries"].get, ("source", "target"))
        ]
    else:
        words = [_dictionary(found.dictionary, description["dictionary"], "<mask>")] * 2
    given = OmegaConf.create({**description["model"], "precision": "fp32", "init_embeddings": ""})
    source, target = words
    task = SimpleNamespace(
        source_dictionary=source, target_dictionary=target, cfg=SimpleNamespace(seed=1)
    )
    with fp32_by_default():
        model = models.build_model(given, task, from_checkpoint=True)
        check_knobs(model, found)
        if not found.is_text:
            head = description["head"]
            sizes = head["num_classes"], head.get("inner_dim")
            model.register_classification_head(head["name"], *sizes)
    model.accepts_base = False
    return model


def _dictionary(path, told, *more):
    """The dictionary in the file ``path``, with ``more`` words, as the folder has ``told`` it."""
    dictionary = checks.load_dictionary(str(path))
    for word in more:
        dictionary.add_symbol(word)
    sha256 = checks.fingerprint(dictionary)
    if sha256 != told["sha256"]:
        raise InputError(
            f"{path} is not the dictionary that the adapter was trained with: its sha256 is "
            f"{sha256[:12]}, expected {told['sha256'][:12]}."
        )
    return dictionary


@contextlib.contextmanager
def fp32_by_default():
    """Weights are fp32, whatever ``torch.set_default_dtype`` says: what is computed with them then
    has the precision that it is said to have, and what is drawn from a seed is the same."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check_knobs(model, found: AdapterFolder) -> None:
    """Raise InputError where this version makes other knobs of the folder's flags."""
    if model.setting.knobs() != found.description["method"]["knobs"]:
        raise InputError(
            f"{found.folder} has --peft {model.setting.name} with other knobs than this version of "
            "fairseq_peft makes of it. Load it with the version that wrote it "
            f"({found.description.get('versions', {}).get('fairseq_peft', 'unknown')})."
        )


def load(found: AdapterFolder, base: Mapping[str, torch.Tensor] | None, allow_other: bool = False):
    """The fine-tuned model, in eval mode, with every key accounted for.

    Args:
        base: the base checkpoint's weights; None where the folder holds the whole model.
        allow_other: whether another base than that of training will do (``--allow-other-base``).

    Raises:
        InputError: the base is missing or another, or keys are missing, left over or of another
            shape.
    """
    weights = dict(found.tensors)
    if not found.description["complete"]:
        if base is None:
            raise InputError(
                f"{found.folder} holds what was trained beside a base, and the base is missing. "
                f"Give it (--base); it was {found.description['base']['path']}."
            )
        adapter_folder.check_base(found.description, base, allow_other)
        rest = {name: tensor for name, tensor in base.items() if not name.startswith(HEADS)}
        weights = {**adapter_folder.renamed(rest), **weights}
    model = build(found)
    for second, first in adapter_folder.aliases(model.state_dict()).items():
        if first in weights:  # both names of a tied tensor would be written, the last one to stay
            weights[second] = weights[first]
    try:
        model.load_state_dict(weights)
    except InputError as error:
        raise InputError(f"{found.folder}: {error}") from error
    return model.eval()


def load_beside(found: AdapterFolder, base: str, task, allow_other: bool = False):
    """The fine-tuned model, in eval mode, of a folder whose base is one of Hugging Face's.

    Args:
        base: the folder with config.json and safetensors.
        task: builds the model, as fairseq's tasks do.

    Raises:
        InputError: the base is another, or has other tensors.
    """
    flags = {**found.description["model"], "precision": "fp32", "hf_model": str(base)}
    with fp32_by_default():
        model = task.build_model(OmegaConf.create(flags), from_checkpoint=True)
    adapter_folder.check_fingerprint(found.description, model.base_sha256, allow_other)
    check_knobs(model, found)
    try:
        adapter_folder.apply(model, found)
    except InputError as error:
        raise InputError(f"{found.folder}: {error}") from error
    return model.eval()


def reference(path: str, state: Mapping[str, torch.Tensor]) -> dict:
    """What a description says of the base checkpoint that was read from ``path``."""
    return {"path": os.path.abspath(path), "sha256": adapter_folder.fingerprint(state)}
