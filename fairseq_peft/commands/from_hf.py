"""Write a RoBERTa of Hugging Face's library as a fairseq checkpoint, and check it.

The folder holds config.json, model.safetensors and tokenizer.json, as save_pretrained of model and
tokenizer write them. The output folder holds model.pt and dict.txt. Both sides then compute on the
same tokens; a checkpoint that differs is not written.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fairseq_peft.commands.export import check_out
from fairseq_peft.commands.to_hf import report
from fairseq_peft.errors import InputError


def add_arguments(parser):
    parser.add_argument("folder", type=Path, help="the folder of Hugging Face's library")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument(
        "--no-check", action="store_true", help="do not compare the sides; needs no transformers"
    )
    parser.add_argument("--force", action="store_true", help="write over the folder, if it exists")


def run(args) -> int:
    check_out(args.out, args.force)
    if not args.folder.is_dir():
        raise InputError(f"{args.folder} is no folder. Give one that save_pretrained wrote.")

    import fairseq_peft.plugin  # noqa: F401
    from fairseq_peft.hf import from_folder

    found = from_folder.convert(args.folder, args.out, checked=not args.no_check)
    sys.stdout.write("\n".join(report(args.out, found)) + "\n")
    return 0
