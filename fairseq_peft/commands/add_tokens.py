"""Give a base rows for new tokens, such as a language's, that --peft-train-tokens then trains.

DIR holds model.pt and dict.txt, the base with one row more for each token in every table of words,
and copies of what cuts its text. A row starts as the mean of all words, or as that of the token
that --like names. All other words keep their rows. Binarise data with the new dict.txt
(fairseq-preprocess --srcdict DIR/dict.txt --tgtdict DIR/dict.txt, or prepare-pairs --spm --dict).
"""

from __future__ import annotations

import sys
from pathlib import Path

from fairseq_peft.checkpoints import finetuned
from fairseq_peft.commands.export import check_out
from fairseq_peft.errors import InputError, unwritten


def add_arguments(parser):
    parser.add_argument("base", type=Path, help="the base checkpoint (model.pt)")
    parser.add_argument("out", type=Path, metavar="DIR", help="the folder to write")
    parser.add_argument("--tokens", required=True, help="the new tokens, with commas")
    parser.add_argument("--dict", type=Path, help="the base's dictionary (dict.txt beside it)")
    parser.add_argument(
        "--like", metavar="TOKEN", help="start as the rows of this one (the mean of all words)"
    )
    parser.add_argument("--force", action="store_true", help="write over the folder, if it exists")
    finetuned.add_trust_argument(parser)


def run(args) -> int:
    check_out(args.out, args.force, (args.base, args.dict))
    finetuned.check_file(args.base)

    import torch

    from fairseq_peft import folders
    from fairseq_peft.checkpoints import extended
    from fairseq_peft.data import checks
    from fairseq_peft.text import bpe

    file = args.dict or args.base.parent / "dict.txt"
    if not file.is_file():
        raise InputError(f"{file} does not exist. Give the base's own dictionary (--dict).")
    words = checks.load_dictionary(str(file))
    tokens = args.tokens.split(",")
    state, first = extended.extend(args.base, words, tokens, args.like, args.trust_checkpoint)
    place = bpe.locate(args.base.parent)
    text = file.read_text(encoding="utf-8")
    text += "" if text.endswith("\n") else "\n"
    text += "".join(f"{token} 1\n" for token in tokens)
    try:
        with folders.replaced(args.out) as new:
            torch.save(state, new / "model.pt")
            (new / "dict.txt").write_text(text, encoding="utf-8")
            if place is not None:
                bpe.write(place.load(), new)
    except OSError as error:
        raise unwritten(args.out, error) from error
    rows = f"row {first}" if len(tokens) == 1 else f"rows {first} to {first + len(tokens) - 1}"
    start = f"that of {args.like}" if args.like else "the mean of all words"
    sys.stdout.write(f"{args.out}: {', '.join(tokens)}, {rows}, each at first {start}\n")
    return 0
