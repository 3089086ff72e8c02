"""Fold a fine-tuned checkpoint, or a base and an adapter folder, into a plain checkpoint, which
stock fairseq loads without this plugin.

The method's tensors are merged into the base weights in fp32 and cast once. The configuration names
fairseq's own task and architecture: `RobertaModel.from_pretrained`, `fairseq-validate` and
`fairseq-train --finetune-from-model` take the file as they take any other. Before it is written it
is loaded into fairseq's own model, and its logits are compared with those of the checkpoint.

A model of --arch hf_causal_lm or hf_seq2seq becomes a folder that Hugging Face's transformers opens
by itself, with the tokenizer; its logits are compared there.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from fairseq_peft.checkpoints import finetuned
from fairseq_peft.errors import InputError
from fairseq_peft.scores import NUMBER

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
#: Groups of the configuration that only training reads, with paths of the machine that trained.
LEFT_OUT = ("checkpoint", "optimizer", "lr_scheduler")


def add_arguments(parser):
    parser.add_argument(
        "checkpoint", type=Path, help="checkpoint_best.pt, for example, or adapter/ with --base"
    )
    parser.add_argument(
        "out", type=Path, help="the file to write, or the folder (hf_causal_lm, hf_seq2seq)"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="fp32",
        help="type of the merged weights, which are rounded once (fp32)",
    )
    parser.add_argument("--force", action="store_true", help="write over the file, if it exists")
    finetuned.add_base_arguments(parser)


def run(args) -> int:
    import torch

    import fairseq_peft.plugin  # noqa: F401
    from fairseq_peft.adapters import folder as adapter_folder

    if not args.out.is_dir():
        finetuned.check_paths(args.checkpoint, args.out, args.force)
    state = None
    if args.checkpoint.is_file():
        state = finetuned.read(args.checkpoint, args.base, args.trust_checkpoint)
        if finetuned.is_of_library(state):
            return to_folder(args, *finetuned.of_library(args.checkpoint, state, args.base))
    elif args.checkpoint.is_dir():
        found = adapter_folder.read(args.checkpoint, of_any_task=True)
        if found.is_of_folder:
            return to_folder(
                args, *finetuned.beside_folder(found, args.base, args.allow_other_base)
            )
    state, model, batches, head, expected = finetuned.load(args, state)
    check_pooler(args.checkpoint, model)
    merge(args.checkpoint, model)
    notes = to_stock_eps(args.checkpoint, model, head, args.dtype)
    model.to(getattr(torch, DTYPES[args.dtype]))
    weights = stock_weights(model)
    check_finite(args.checkpoint, weights, args.dtype)
    is_number = (state.get("task_state") or {}).get("kind") == NUMBER
    cfg = stock_config(state["cfg"], model, head, is_number)
    difference = (
        (finetuned.logits(stock_model(cfg, model, weights), batches, head) - expected).abs().max()
    )
    if args.dtype == "fp32":
        finetuned.check_merged(difference, expected)
    finetuned.write(args.out, state, cfg, weights)
    sys.stdout.write(
        f"{args.out}: {len(weights)} tensors, {args.dtype}; on {len(batches)} random batches its "
        f"logits differ from the unmerged model's by {difference:.1e} at most\n"
        f"{notes}{hub_call(args.checkpoint, args.out, cfg, model)}\n"
    )
    return 0


def to_folder(args, task, model) -> int:
    """Write a model of Hugging Face's, merged, as a folder."""
    import torch

    from fairseq_peft.commands.export import check_out
    from fairseq_peft.hf import merged_folder

    check_out(args.out, args.force, (args.checkpoint, args.base))
    dtype = getattr(torch, DTYPES[args.dtype])
    number, difference = merged_folder.write(args.out, task, model, dtype)
    sys.stdout.write(
        f"{args.out}: {number} tensors, {args.dtype}; in transformers its logits differ from the "
        f"unmerged model's by {difference:.1e} at most\n"
        f"from transformers import {model.auto}\n"
        f"{model.auto}.from_pretrained({os.path.abspath(args.out)!r})\n"
    )
    return 0


def to_stock_eps(path: Path, model, head: str | None, dtype: str) -> str:
    """Rescale the merged weights so that fairseq's layer norms, whose eps is fixed, compute what
    the model's own do (``models.norms``); what the user should know of it, as lines.

    Raises:
        InputError: half precision cannot hold what the rescaled layers compute.
    """
    from torch import nn

    from fairseq_peft.models import norms

    eps = norms.eps_of(model.args)
    if eps == norms.STOCK_EPS:
        return ""
    if dtype == "fp16":
        raise InputError(
            f"{path} has --layer-norm-eps {eps}, and fairseq's own models {norms.STOCK_EPS}: its "
            "weights are rescaled for them, and what they compute then is too large for fp16. Give "
            "--dtype bf16 or fp32."
        )
    nn.Module.load_state_dict(model, norms.for_stock(model.state_dict(), model.args))
    note = (
        f"fairseq's layer norms have eps {norms.STOCK_EPS}, this model's {eps}: its weights are "
        "rescaled, so that the file computes the same there; do not train it on"
    )
    if head is None:
        note += ". The LM head's norm has no such scale; its logits moved as said"
    return note + "\n"


def hub_call(checkpoint: Path, out: Path, cfg: dict, model) -> str:
    """The Python with which stock fairseq opens the merged file ``out``: the data folder and its
    tokenizer, which are not in the file, are arguments."""
    stock = stock_class(model)
    data = os.path.abspath(cfg["task"]["data"])
    places = [place for place in (data, os.path.abspath(checkpoint)) if os.path.isdir(place)]
    found = next(filter(None, map(reader, places)), None)
    flags = {"data_name_or_path": data, "bpe": None, **(found.fairseq_flags() if found else {})}
    words = [os.path.abspath(out.parent), out.name]
    call = ", ".join([*map(repr, words), *(f"{name}={value!r}" for name, value in flags.items())])
    lines = [
        f"from {stock.__module__} import {stock.__name__}",
        f"{stock.__name__}.from_pretrained({call})",
    ]
    if data not in places:
        lines.insert(0, f"# {data} is not here: name a folder with the same dictionaries instead")
    return "\n".join(lines)


def reader(folder: str):
    """What reads text as ``folder`` does; None where it does not say, or where its files are
    damaged: the merged model is whole all the same."""
    from fairseq_peft.text import bpe

    with contextlib.suppress(InputError):
        return bpe.find(folder)
    return None


def merge(path: Path, model) -> None:
    """Fold the methods in place; what cannot be merged is told what can be done instead."""
    try:
        model.merge()
    except InputError as error:
        before = model.setting
        model.fold()
        hint = " fairseq-peft fold drops its MLP." if model.setting.changed_flags(before) else ""
        raise InputError(f"{path}: {error}{hint}") from error


def check_pooler(path: Path, model) -> None:
    """Raise InputError where the head reads what fairseq's own heads cannot."""
    for head in model.classification_heads.values():
        if getattr(head, "pooler", "first") != "first":
            raise InputError(
                f"{path} was trained with --pooler {head.pooler}, and fairseq's own heads read the "
                "features of <s>. Keep the checkpoint or the adapter folder, which fairseq-peft "
                "predict takes."
            )


def check_finite(path: Path, weights: dict, dtype: str) -> None:
    """Raise InputError where a merged weight is no number, or too large for its type."""
    bad = [key for key, value in weights.items() if not value.isfinite().all()]
    if bad and dtype == "fp16":
        raise InputError(
            f"{path}: {bad[0]} has values beyond fp16 ({len(bad)} such tensors). Give --dtype bf16 "
            "or fp32."
        )
    if bad:
        raise InputError(
            f"{path}: {bad[0]} has values that are not finite ({len(bad)} such tensors): the run "
            "has diverged. Give another checkpoint."
        )


def stock_weights(model) -> dict:
    """The model's tensors by fairseq's names. A linear head becomes RoBERTa's with a dense layer
    that changes nothing, whose activation ``stock_config`` makes linear."""
    import torch

    from fairseq_peft.models.heads import LinearHead
    from fairseq_peft.models.roberta import HEADS

    weights = dict(model.state_dict())
    for name, head in model.classification_heads.items():
        if isinstance(head, LinearHead):
            like = head.out_proj.weight
            one = torch.eye(like.shape[1], dtype=like.dtype)
            weights[f"{HEADS}{name}.dense.weight"] = one
            weights[f"{HEADS}{name}.dense.bias"] = torch.zeros(len(one), dtype=like.dtype)
    return weights


def stock_config(cfg: dict, model, head, is_number: bool) -> dict:
    """The checkpoint's configuration with fairseq's own task, criterion and architecture.

    Args:
        is_number: whether the head predicts a number.
    """
    import argparse

    from fairseq.models import MODEL_DATACLASS_REGISTRY

    from fairseq_peft.checkpoints.file import namespace
    from fairseq_peft.models.heads import kind_of

    names, stock = registered(), stock_class(model)
    parser = argparse.ArgumentParser(add_help=False)
    stock.add_args(parser)
    flags, known = [*vars(parser.parse_args([]))], vars(model.args)
    if names[stock] in MODEL_DATACLASS_REGISTRY:
        # Fields that fairseq takes from other groups have no flag.
        flags += vars(MODEL_DATACLASS_REGISTRY[names[stock]]())
    sizes = {key: known[key] for key in flags if known.get(key) is not None}
    own, task = {}, cfg["task"]
    if task.get("_name") == "sentence_classification":
        dictionary, longest = model.dictionary, model.max_positions()
        criterion = {"classification_head_name": head, "regression_target": is_number}
        own["criterion"] = {"_name": "sentence_prediction", **criterion}
        own["task"] = {
            "_name": "sentence_prediction",
            "data": task["data"],
            "num_classes": model.classification_heads[head].out_proj.out_features,
            "init_token": None if task.get("no_init_token") else dictionary.bos(),
            "separator_token": dictionary.eos(),
            "max_positions": longest if isinstance(longest, int) else min(longest),
            **({"add_prev_output_tokens": True} if hasattr(model, "decoder") else {}),
            "seed": task.get("seed", 1),
            **criterion,
        }
    common = {**(cfg.get("common") or {}), "user_dir": None, "tensorboard_logdir": None}
    sizes["_name"] = buildable(names[stock])
    if hasattr(model.args, "load_checkpoint_heads"):
        sizes["load_checkpoint_heads"] = True
    if kind_of(model.args) == "linear":
        sizes["pooler_activation_fn"] = "linear"
    told = sizes
    if sizes["_name"] != names[stock]:
        # fairseq's BART asks for its task, and finds it in a namespace alone.
        told = namespace({**sizes, "task": {**cfg, **own}["task"]["_name"]})
    kept = {key: value for key, value in cfg.items() if key not in LEFT_OUT}
    return {**kept, **own, "common": common, "model": told}


def buildable(name: str) -> str:
    """The name by which fairseq builds the model ``name``: for BART that of an architecture, whose
    sizes give way to those that are told."""
    from fairseq.models import (
        ARCH_MODEL_INV_REGISTRY,
        ARCH_MODEL_REGISTRY,
        MODEL_DATACLASS_REGISTRY,
    )

    if name in ARCH_MODEL_REGISTRY or name in MODEL_DATACLASS_REGISTRY:
        return name
    return ARCH_MODEL_INV_REGISTRY[name][0]


def registered() -> dict:
    """Class -> name of every model that fairseq knows."""
    from fairseq.models import MODEL_REGISTRY

    return {model_class: name for name, model_class in MODEL_REGISTRY.items()}


def stock_class(model) -> type:
    """fairseq's own class that the plugin's ``model`` stands on."""
    names = registered()
    return next(base for base in type(model).__mro__[1:] if base in names)


def stock_model(cfg: dict, model, weights: dict):
    """fairseq's own model of the merged file, in fp32 and eval mode."""
    from types import SimpleNamespace

    from fairseq import models
    from omegaconf import OmegaConf

    words = model.dictionary
    target = getattr(model, "target_dictionary", words)
    task = SimpleNamespace(source_dictionary=words, target_dictionary=target)
    told = cfg["model"]
    plain = models.build_model(OmegaConf.create(told) if type(told) is dict else told, task)
    plain.load_state_dict(dict(weights), strict=True)
    return plain.eval()
