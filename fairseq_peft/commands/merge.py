"""Fold a fine-tuned checkpoint into a plain one, which stock fairseq loads without this plugin.

The method's tensors are merged into the base weights in fp32 and cast once. The configuration names
fairseq's own task and architecture: `RobertaModel.from_pretrained`, `fairseq-validate` and
`fairseq-train --finetune-from-model` take the file as they take any other. Before it is written it
is loaded into fairseq's own model, and its logits are compared with those of the checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.files import whole

#: How far a merge in fp32 may move a logit, relative to the largest: rounding is far below.
LIMIT = 1e-3
#: Groups of the configuration that only training reads, with paths of the machine that trained.
LEFT_OUT = ("checkpoint", "optimizer", "lr_scheduler")


def add_arguments(parser):
    parser.add_argument("checkpoint", type=Path, help="checkpoint_best.pt, for example")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument(
        "--dtype",
        choices=("fp32", "fp16", "bf16"),
        default="fp32",
        help="type of the merged weights, which are rounded once (fp32)",
    )
    parser.add_argument("--force", action="store_true", help="write over the file, if it exists")


def run(args) -> int:
    check_paths(args.checkpoint, args.out, args.force)

    import torch

    from fairseq_peft.data.checks import read_checkpoint

    state = read_checkpoint(str(args.checkpoint))
    model = rebuild(args.checkpoint, state)
    longest = model.max_positions() - model.num_reserved
    batches = list(random_batches(model.encoder.dictionary, longest))
    head = choose_head(args.checkpoint, state["cfg"]["task"], model)
    expected = logits(model, batches, head)
    merge(args.checkpoint, model)
    model.to({"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[args.dtype])
    weights = model.state_dict()
    check_finite(args.checkpoint, weights, args.dtype)
    cfg = stock_config(state["cfg"], model, head)
    difference = (logits(stock_model(cfg, model, weights), batches, head) - expected).abs().max()
    if args.dtype == "fp32" and not difference <= LIMIT * expected.abs().max().clamp(min=1):
        raise RuntimeError(f"the merged model's logits are {difference:.1e} off; nothing written")
    write(args.out, state, cfg, weights)
    sys.stdout.write(
        f"{args.out}: {len(weights)} tensors, {args.dtype}; on {len(batches)} random batches its "
        f"logits differ from the unmerged model's by {difference:.1e} at most\n"
    )
    return 0


def check_paths(checkpoint: Path, out: Path, force: bool) -> None:
    """Raise InputError where there is nothing to read, or something not to be written over."""
    if not checkpoint.is_file():
        raise InputError(
            f"{checkpoint} does not exist. Give a checkpoint that fairseq-train wrote."
        )
    if out.is_dir():
        raise InputError(f"{out} is a folder. Give the name of the file to write.")
    if out.exists() and out.samefile(checkpoint):
        raise InputError(f"{out} is the checkpoint itself. Give the merged file another name.")
    if out.exists() and not force:
        raise InputError(f"{out} exists. Give another name, or --force to write over it.")


def rebuild(path: Path, state: dict):
    """The fine-tuned model of a checkpoint, in eval mode, with every key accounted for.

    No data folder is needed: the weights say how many words and classes there are.
    """
    from types import SimpleNamespace

    from fairseq import models
    from omegaconf import OmegaConf

    import fairseq_peft.plugin  # noqa: F401
    from fairseq_peft.models.roberta import HEADS

    cfg = state.get("cfg") if isinstance(state.get("cfg"), dict) else {}
    given, weights = cfg.get("model") or {}, state["model"]
    name = given.get("_name") if isinstance(given, dict) else None
    model_class = models.ARCH_MODEL_REGISTRY.get(name, models.MODEL_REGISTRY.get(name))
    embedding = weights.get("encoder.sentence_encoder.embed_tokens.weight")
    if not hasattr(model_class, "inject") or embedding is None:
        raise InputError(
            f"{path} is no model of this plugin (its architecture is {name!r}), so there is "
            "nothing to merge. Give a checkpoint of fairseq-train with --peft."
        )
    # Neither the autocast nor the files of training are needed to compute what it computes.
    given = OmegaConf.create({**given, "precision": "fp32", "init_embeddings": ""})
    task = SimpleNamespace(
        source_dictionary=placeholder(len(embedding)), cfg=SimpleNamespace(seed=1)
    )
    model = models.build_model(given, task, from_checkpoint=True)
    for key, value in weights.items():
        if key.startswith(HEADS) and key.endswith(".out_proj.weight"):
            head = key[len(HEADS) : -len(".out_proj.weight")]
            model.register_classification_head(
                head, num_classes=len(value), inner_dim=value.shape[1]
            )
    model.accepts_base = False
    try:
        model.load_state_dict(weights)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return model.eval()


def choose_head(path: Path, task: dict, model):
    """The name of the head that classifies, None for a language model."""
    heads = list(model.classification_heads)
    if task.get("_name") != "sentence_classification":
        return heads[0] if heads else None
    head = task["classification_head_name"]
    if head not in heads:
        raise InputError(
            f"{path} has no classification head {head!r} (heads: {', '.join(heads) or 'none'}), so "
            "it cannot classify. Give a checkpoint that fairseq-train wrote."
        )
    return head


def placeholder(num_rows: int):
    """A dictionary of that many rows, with fairseq's specials first and ``<mask>`` last."""
    from fairseq.data import Dictionary

    dictionary = Dictionary()
    for row in range(len(dictionary), num_rows - 1):
        dictionary.add_symbol(f"word{row}")
    dictionary.add_symbol("<mask>")
    return dictionary


def random_batches(dictionary, longest: int, number: int = 3, rows: int = 8):
    """Batches (rows, T) of words between ``<s>`` and ``</s>``, of all lengths up to T."""
    import torch

    generator = torch.Generator().manual_seed(0)
    longest = min(longest, 64)
    for _ in range(number):
        tokens = torch.randint(4, len(dictionary), (rows, longest), generator=generator)
        tokens[:, 0] = dictionary.bos()
        for row, length in zip(tokens, torch.linspace(3, longest, rows).long()):
            row[length - 1] = dictionary.eos()
            row[length:] = dictionary.pad()
        yield tokens


def logits(model, batches, head):
    """Class scores of all batches, or, without a head, scores of words where there are words."""
    import torch

    found = []
    with torch.no_grad():
        for tokens in batches:
            scores = model(tokens, features_only=head is not None, classification_head_name=head)[0]
            found.append(scores if head else scores[tokens != model.encoder.dictionary.pad()])
    return torch.cat(found)


def merge(path: Path, model) -> None:
    """Fold the methods in place; what cannot be merged is told what can be done instead."""
    try:
        model.setting.merge(model)
    except InputError as error:
        before = model.setting
        model.fold()
        hint = ""
        if model.setting != before:
            hint = " What can be folded is its MLP: fold() of the loaded model leaves its output."
        raise InputError(f"{path}: {error}{hint}") from error


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


def stock_config(cfg: dict, model, head) -> dict:
    """The checkpoint's configuration with fairseq's own task, criterion and architecture."""
    import argparse

    from fairseq.models import MODEL_REGISTRY

    names = {registered: name for name, registered in MODEL_REGISTRY.items()}
    stock = next(base for base in type(model).__mro__[1:] if base in names)
    parser = argparse.ArgumentParser(add_help=False)
    stock.add_args(parser)
    known = vars(model.args)
    sizes = {key: known[key] for key in vars(parser.parse_args([])) if known.get(key) is not None}
    own, task = {}, cfg["task"]
    if task.get("_name") == "sentence_classification":
        dictionary = model.encoder.dictionary
        criterion = {"classification_head_name": head, "regression_target": False}
        own["criterion"] = {"_name": "sentence_prediction", **criterion}
        own["task"] = {
            "_name": "sentence_prediction",
            "data": task["data"],
            "num_classes": model.classification_heads[head].out_proj.out_features,
            "init_token": None if task.get("no_init_token") else dictionary.bos(),
            "separator_token": dictionary.eos(),
            "max_positions": model.max_positions(),
            "seed": task.get("seed", 1),
            **criterion,
        }
    common = {**(cfg.get("common") or {}), "user_dir": None, "tensorboard_logdir": None}
    sizes.update(_name=names[stock], load_checkpoint_heads=True)
    kept = {key: value for key, value in cfg.items() if key not in LEFT_OUT}
    return {**kept, **own, "common": common, "model": sizes}


def stock_model(cfg: dict, model, weights: dict):
    """fairseq's own model of the merged file, in fp32 and eval mode."""
    from types import SimpleNamespace

    from fairseq import models
    from omegaconf import OmegaConf

    task = SimpleNamespace(source_dictionary=model.encoder.dictionary)
    plain = models.build_model(OmegaConf.create(cfg["model"]), task)
    plain.load_state_dict(dict(weights), strict=True)
    return plain.eval()


def write(out: Path, state: dict, cfg: dict, weights: dict) -> None:
    """Write what fairseq's loader looks for, and no history to go on from."""
    import torch

    history = {
        "criterion_name": "",
        "optimizer_name": "",
        "lr_scheduler_state": {},
        "num_updates": 0,
    }
    plain = {
        "args": None,
        "cfg": cfg,
        "model": weights,
        "task_state": state.get("task_state") or {},
        "optimizer_history": [history],
        "extra_state": {"train_iterator": {"epoch": 1}, "val_loss": None},
        "last_optimizer_state": None,
    }
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole(out) as temporary:
            torch.save(plain, temporary)
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error}). Give another place.") from error
