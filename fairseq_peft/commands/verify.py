"""Check an adapter folder: every byte of its files and, with --base, that it belongs to that base.

The exit status is 0 if all is well, else 1, with what was expected and what is there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fairseq_peft.checkpoints import finetuned


def add_arguments(parser):
    parser.add_argument("folder", type=Path, help="the folder adapter/ of a run")
    finetuned.add_base_arguments(parser)


def run(args) -> int:
    from fairseq_peft.adapters import folder as adapter_folder

    found = adapter_folder.read(args.folder, of_any_task=True)
    lines = [
        f"{name}: {entry['bytes']:,} bytes, sha256 {entry['sha256'][:12]}, as written"
        for name, entry in found.description["files"].items()
    ]
    lines.append(f"{adapter_folder.DESCRIPTION}: {found.description['method']['peft']}, as written")
    if args.base is None:
        lines.append(base_line(found.description))
    else:
        flags = args.allow_other_base, args.trust_checkpoint
        finetuned.from_folder(args.folder, args.base, *flags, of_any_task=True)
        lines.append(f"base: {args.base} fits, {len(found.tensors)} tensors have their places")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def base_line(description: dict) -> str:
    """What there is to know of the base without looking at it."""
    if description["complete"]:
        return "base: none needed, the folder holds the whole model"
    base = description["base"]
    return f"base: sha256 {base['sha256'][:12]}, then {base['path']}; not looked at, give --base"
