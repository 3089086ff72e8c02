"""Write a RoBERTa, CamemBERT or XLM-R of Hugging Face's library as a fairseq checkpoint, and check
it.

The folder holds config.json, model.safetensors (or pytorch_model.bin, as older versions wrote it)
and tokenizer.json. The output folder holds model.pt, dict.txt and, if there is one,
sentencepiece.bpe.model. Both sides then compute on the same tokens, and read the same texts; a
checkpoint that differs is not written.
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
        "--check-text", type=Path, help="text whose lines are read on both sides, besides random"
    )
    parser.add_argument(
        "--no-check", action="store_true", help="do not compare the sides; needs no transformers"
    )
    parser.add_argument("--force", action="store_true", help="write over the folder, if it exists")


def run(args) -> int:
    check_out(args.out, args.force)
    if not args.folder.is_dir():
        raise InputError(f"{args.folder} is no folder. Give one that save_pretrained wrote.")

    if args.no_check and args.check_text:
        raise InputError("--check-text would be ignored with --no-check. Leave one out.")

    import fairseq_peft.plugin  # noqa: F401
    from fairseq_peft.adapters import folder as adapter_folder
    from fairseq_peft.hf import check, from_folder
    from fairseq_peft.text.raw_text import read_lines

    reads = (args.folder / adapter_folder.TOKENIZER).is_file()
    if args.check_text and not reads:
        raise InputError(
            f"--check-text would be ignored: {args.folder} has no {adapter_folder.TOKENIZER}, "
            "without which fairseq reads no text."
        )
    if not args.no_check:
        check.quiet()
    found = from_folder.convert(
        args.folder,
        args.out,
        checked=not args.no_check,
        texts=list(read_lines([args.check_text])) if args.check_text else (),
    )
    sys.stdout.write("\n".join(report(args.out, found)) + "\n")
    if not reads:
        sys.stdout.write(
            f"{args.folder} has no {adapter_folder.TOKENIZER}: fairseq reads no text with this "
            "checkpoint until there is one\n"
        )
    return 0
