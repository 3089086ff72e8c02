"""Show what an adapter folder or a checkpoint holds: method, sizes, base, metrics."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from fairseq_peft.checkpoints import finetuned
from fairseq_peft.errors import InputError
from fairseq_peft.files import json_text


def add_arguments(parser):
    parser.add_argument("path", type=Path, help="an adapter folder, or a .pt file of fairseq")
    parser.add_argument("--json", action="store_true", help="print JSON")
    finetuned.add_trust_argument(parser)


def run(args) -> int:
    if args.path.is_dir():
        rows = describe_folder(args.path)
    elif args.path.is_file():
        rows = describe_checkpoint(args.path, args.trust_checkpoint)
    else:
        raise InputError(f"{args.path} does not exist. Give an adapter folder or a checkpoint.")
    if args.json:
        sys.stdout.write(json_text(rows, indent=1) + "\n")
    else:
        sys.stdout.write("\n".join(table(rows)) + "\n")
    return 0


def describe_folder(path: Path) -> dict:
    """The rows of an adapter folder, verified."""
    from fairseq_peft.adapters import folder as adapter_folder
    from fairseq_peft.models.roberta import HEADS

    found = adapter_folder.read(path, of_any_task=True)
    told = found.description
    rows = {
        "kind": "whole model" if told["complete"] else "adapter",
        "method": told["method"]["peft"],
        "knobs": told["method"]["knobs"],
        "targets": told["method"]["targets"],
        **({"answers": told["kind"]} if "kind" in told else {}),
        **(of_text(told) if found.is_text else of_classes(told)),
        **sizes(found.tensors, HEADS),
        "base": told["base"],
        "files": {name: f"{entry['bytes']:,} bytes" for name, entry in told["files"].items()},
    }
    if "origin" in told:
        rows["origin"] = dict(told["origin"])
        if "folders" in told["origin"]:  # of fairseq-peft combine
            parts = [f"{part['weight']:+g} {part['path']}" for part in told["origin"]["folders"]]
            rows["origin"]["folders"] = parts
    names = ("metrics", "data", "seed", "hyperparameters", "versions", "command")
    return {**rows, **{name: told[name] for name in names if name in told}}


def of_classes(told: dict) -> dict:
    """The rows that a classifier's folder has, besides."""
    head = told["head"]
    classes = f"{head['num_classes']} classes ({', '.join(told['labels'])})"
    return {
        "head": f"{head['kind']}, {classes}",
        "dictionary": told["dictionary"],
        "input": told["input"],
    }


def of_text(told: dict) -> dict:
    """The rows that the folder of a model that answers with text has, besides."""
    flags = ("_name", "source_lang", "target_lang")
    return {
        "task": {name: told["task"][name] for name in flags if told["task"].get(name)},
        **{
            name: told[name] for name in ("dictionaries", "tokenizer", "generation") if name in told
        },
    }


def describe_checkpoint(path: Path, trust: bool) -> dict:
    """The rows of a checkpoint, as it lies on the disk."""
    from fairseq_peft import methods
    from fairseq_peft.checkpoints import file as checkpoint_file
    from fairseq_peft.models.roberta import BASE_SIZES, HEADS

    state = checkpoint_file.read(str(path), trust)
    model = checkpoint_file.told(state)
    base, extra = state.get("base"), state.get("extra_state") or {}
    rows = {
        "kind": "checkpoint that refers to a base" if base else "checkpoint of a whole model",
        "architecture": model.get("_name") or model.get("arch"),
    }
    chosen = methods.told(model)
    if chosen is not None:
        rows.update(method=chosen.name, knobs=chosen.knobs())
    with contextlib.suppress(InputError):  # of another family
        rows["sizes"] = BASE_SIZES.read(state, str(path))
    rows.update(sizes(state["model"], HEADS))
    if base:
        rows["base"] = {"path": base["path"], "sha256": base["sha256"]}
        rows["left to the base"] = f"{len(base['names'])} tensors"
    if (state.get("task_state") or {}).get("labels"):
        rows["labels"] = state["task_state"]["labels"]
    history = state.get("optimizer_history") or [{}]
    rows["updates"] = history[-1].get("num_updates")
    rows["epoch"] = (extra.get("train_iterator") or {}).get("epoch")
    for key, name in (("val_loss", "value that chooses"), ("best", "best of it so far")):
        if extra.get(key) is not None:
            rows[name] = extra[key]
    rows["optimizer state"] = "yes" if state.get("last_optimizer_state") else "no"
    return rows


def sizes(tensors, heads: str) -> dict:
    """How much the tensors are, with and without heads (names that begin with ``heads``)."""

    def told(names):
        number = sum(tensors[name].numel() for name in names)
        size = sum(tensors[name].numel() * tensors[name].element_size() for name in names)
        return f"{len(names)} tensors, {number:,} numbers, {size:,} bytes"

    head = [name for name in tensors if name.startswith(heads)]
    return {
        "without the head": told([name for name in tensors if name not in set(head)]),
        "head alone": told(head),
        "with the head": told(list(tensors)),
    }


def table(rows: dict, indent: str = "") -> list[str]:
    """The rows for a person."""
    lines = []
    width = max((len(name) for name in rows), default=0)
    for name, value in rows.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}", *table(value, indent + "  ")]
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            text = f"{text:.6g}" if isinstance(text, float) else text
            lines.append(f"{indent}{name:<{width}}  {text}".rstrip())
    return lines
