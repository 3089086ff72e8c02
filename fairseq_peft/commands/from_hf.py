"""Write a RoBERTa, CamemBERT, XLM-R or BERT of Hugging Face's library as a fairseq checkpoint, and
check it; a BART, mBART, M2M-100 or NLLB, too.

The folder holds config.json, model.safetensors (or pytorch_model.bin, as older versions wrote it;
or several files with their index) and tokenizer.json (M2M-100's vocab.json). The output folder
holds model.pt, dict.txt and what cuts text into pieces: sentencepiece.bpe.model, if there is one,
or the files of --bpe gpt2 or bert. Both sides then compute on the same tokens, and read the same
texts; a checkpoint that differs is not written.
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
    check_out(args.out, args.force, [args.folder])
    if not args.folder.is_dir():
        raise InputError(f"{args.folder} is no folder. Give one that save_pretrained wrote.")

    if args.no_check and args.check_text:
        raise InputError("--check-text would be ignored with --no-check. Leave one out.")

    import fairseq_peft.plugin  # noqa: F401
    from fairseq_peft.hf import check, from_folder
    from fairseq_peft.text.raw_text import read_lines

    if not args.no_check:
        check.quiet()
    found = from_folder.convert(
        args.folder,
        args.out,
        checked=not args.no_check,
        texts=list(read_lines([args.check_text])) if args.check_text else (),
    )
    sys.stdout.write("\n".join(report(args.out, found)) + "\n")
    if found["bpe"] is None:
        sys.stdout.write(
            f"fairseq reads no text with this checkpoint: {found['reason']}. Put the files of a "
            "--bpe beside it that cut text as its tokenizer does\n"
        )
    return 0
