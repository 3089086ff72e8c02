"""A training checkpoint without what only resuming needs: configuration and weights.

The output loads into fairseq like any checkpoint (--finetune-from-model, from_pretrained). It is
read with torch's safe loader, so a file that would run code is refused.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.files import whole

logger = logging.getLogger(__name__)

KEPT = ("args", "cfg", "model", "criterion", "task_state")
# Paths of the machine that trained: a model built from this file must not ask for them again.
FORGOTTEN = ("init_embeddings", "restore_file", "finetune_from_model")


def add_arguments(parser):
    parser.add_argument("checkpoint", type=Path, help="checkpoint_last.pt, for example")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--half", action="store_true", help="weights in half precision")


def run(args) -> int:
    if not args.checkpoint.is_file():
        raise InputError(f"{args.checkpoint} does not exist. Expected a checkpoint of fairseq.")

    import argparse
    import pickle

    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{args.checkpoint} cannot be read safely: {reason}. "
            f"Expected a checkpoint that fairseq-train wrote, whole."
        ) from None
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise InputError(f"{args.checkpoint} has no 'model'. Expected a checkpoint of fairseq.")

    lean = {key: state.get(key) for key in KEPT}
    if args.half:
        lean["model"] = {
            name: tensor.half() if tensor.is_floating_point() else tensor
            for name, tensor in lean["model"].items()
        }
    for config in _configurations(lean):
        _forget(config)
    # What fairseq's loader looks for even when it resets everything.
    history = (state.get("optimizer_history") or [{}])[-1]
    lean["optimizer_history"] = [
        {
            "criterion_name": history.get("criterion_name", ""),
            "optimizer_name": history.get("optimizer_name", ""),
            "lr_scheduler_state": {},
            "num_updates": history.get("num_updates", 0),
        }
    ]
    lean["extra_state"] = {"train_iterator": {"epoch": 1}, "val_loss": None}
    lean["last_optimizer_state"] = None

    args.out.parent.mkdir(parents=True, exist_ok=True)
    with whole(args.out) as temporary:
        torch.save(lean, temporary)
    logger.info("%s: %.1f MB", args.out, args.out.stat().st_size / 1e6)
    return 0


def _configurations(state: dict) -> list:
    """The Namespace of old checkpoints, the dict of new ones and the groups inside it."""
    cfg = state["cfg"] if isinstance(state["cfg"], dict) else {}
    return [config for config in (state["args"], cfg, *cfg.values()) if config is not None]


def _forget(config) -> None:
    fields = config if isinstance(config, dict) else getattr(config, "__dict__", {})
    for name in FORGOTTEN:
        if name in fields:
            fields[name] = "checkpoint_last.pt" if name == "restore_file" else None
