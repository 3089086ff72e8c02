"""A training checkpoint without what only resuming needs: configuration and weights.

The output loads into fairseq like any checkpoint (--finetune-from-model, from_pretrained) and holds
tensors and plain values only. A file that would run code is refused; with --trust-checkpoint it is
opened, and runs it. With --encoder an encoder-decoder becomes a base for --arch roberta_lora. With
--max-positions a RoBERTa keeps its first positions alone: texts are then cut there in all that
follows, which saves time and memory where they are long.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fairseq_peft.errors import InputError

logger = logging.getLogger(__name__)

KEPT = ("args", "cfg", "model", "criterion", "task_state")
# Paths of the machine that trained: a model built from this file must not ask for them again.
POSITIONS = "sentence_encoder.embed_positions.weight"
FORGOTTEN = ("init_embeddings", "restore_file", "finetune_from_model")


def add_arguments(parser):
    parser.add_argument("checkpoint", type=Path, help="checkpoint_last.pt, for example")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--half", action="store_true", help="weights in half precision")
    parser.add_argument(
        "--encoder",
        action="store_true",
        help="an encoder-decoder's encoder alone (BART, BARThez), as a RoBERTa without LM head",
    )
    parser.add_argument(
        "--max-positions", type=int, metavar="N", help="keep so many positions of a RoBERTa"
    )
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="open the file even if that runs code that its author put there",
    )


def run(args) -> int:
    if not args.checkpoint.is_file():
        raise InputError(f"{args.checkpoint} does not exist. Expected a checkpoint of fairseq.")

    from fairseq_peft.checkpoints import file as checkpoint_file
    from fairseq_peft.checkpoints import slim
    from fairseq_peft.checkpoints.encoder_only import encoder_of

    state = slim.read(str(args.checkpoint), trust=args.trust_checkpoint)
    if args.encoder:
        state = encoder_of(state, str(args.checkpoint))
    lean = {key: state.get(key) for key in KEPT}
    if args.half:
        lean["model"] = {
            name: tensor.half() if tensor.is_floating_point() else tensor
            for name, tensor in lean["model"].items()
        }
    lean.update({key: _plain(lean[key]) for key in lean if key != "model"})
    if args.max_positions is not None:
        _cut_positions(lean, args.max_positions, args.checkpoint)
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

    checkpoint_file.write(args.out, lean)
    logger.info("%s: %.1f MB", args.out, args.out.stat().st_size / 1e6)
    return 0


def _plain(value):
    """``value`` as torch's safe loader takes it: omegaconf's containers as Python's own, None for
    objects of other classes."""
    import torch
    from omegaconf import OmegaConf

    from fairseq_peft.checkpoints import file as checkpoint_file

    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, enum_to_str=True)
    if checkpoint_file.is_namespace(value):
        return checkpoint_file.namespace(_plain(vars(value)))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else None
    known = isinstance(value, torch.Tensor) or type(value) in (str, int, float, bool, bytes)
    return value if known else None


def _configurations(state: dict) -> list:
    """The Namespace of old checkpoints, the dict of new ones and the groups inside it."""
    cfg = state["cfg"] if isinstance(state["cfg"], dict) else {}
    return [config for config in (state["args"], cfg, *cfg.values()) if config is not None]


def _cut_positions(state: dict, number: int, path: Path) -> None:
    """Leave ``number`` positions of a RoBERTa's; row p + 2 is that of position p.

    Raises:
        InputError: it has none that are learned, or no more than that.
    """
    names = [name for name in state["model"] if name.endswith(POSITIONS)]
    rows = len(state["model"][names[0]]) - 2 if names else 0
    if not 8 <= number < rows:
        raise InputError(
            f"--max-positions {number}: {path} has {rows} positions of a RoBERTa. Expected at "
            "least 8, and fewer than it has."
        )
    for name in names:
        state["model"][name] = state["model"][name][: number + 2].clone()
    from fairseq_peft.checkpoints import file as checkpoint_file

    for config in _configurations(state):
        fields = checkpoint_file.fields(config)
        for field in {"max_positions", "tokens_per_sample"} & fields.keys():
            fields[field] = min(fields[field] or number, number)


def _forget(config) -> None:
    from fairseq_peft.checkpoints import file as checkpoint_file

    fields = checkpoint_file.fields(config)
    for name in FORGOTTEN:
        if name in fields:
            fields[name] = "checkpoint_last.pt" if name == "restore_file" else None
