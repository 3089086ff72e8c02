"""Raw text -> tokenizer, held-out lines and pieces, ready for fairseq-preprocess.

Writes OUT/sentencepiece.bpe.model, OUT/dict.txt, OUT/train.pieces and OUT/valid.pieces. Blank lines
are left out. fairseq id = sentencepiece id + 1 from piece 3 on. With another --bpe, its files and
bpe.json are in the place of the model.

A text counts N times as FILE:N (2.5: half of its lines three times, drawn by --seed): text of the
task's own domain is short, and is read more often.
Lines are held out before, and what else has a longer text of theirs (over 100 characters between
tabs) is left out of train. Text of the task's valid and test splits must not be trained on:
--exclude leaves out each line that is in those files, or has a column (between tabs) that is; of
lines with tabs there, the longest column counts, too: the text beside its label. --exclude-ends 80
also leaves out what begins or ends with the same 80 characters: copies that were cut or corrected.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fairseq_peft import folders
from fairseq_peft.errors import InputError
from fairseq_peft.text import bpe

logger = logging.getLogger(__name__)


def add_arguments(parser):
    parser.add_argument(
        "raw", nargs="+", metavar="RAW[:N]", help="UTF-8 text, or .xz of it; N times (1)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--spm", type=Path, help="a sentencepiece model (otherwise one is trained)")
    bpe.add_arguments(parser)
    parser.add_argument("--dict", type=Path, help="their dict.txt (otherwise in the files' order)")
    parser.add_argument("--vocab-size", type=int, help="pieces of a trained model (31998)")
    parser.add_argument("--valid-lines", type=int, default=500, help="held out (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the held-out lines (%(default)s)")
    parser.add_argument(
        "--exclude", nargs="+", type=Path, default=[], metavar="FILE", help="text to leave out"
    )
    parser.add_argument(
        "--exclude-ends",
        type=int,
        default=0,
        metavar="N",
        help="and what shares N characters with such a text at its begin or end (0: nothing more)",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")


def run(args) -> int:
    if args.dict and not (args.spm or args.bpe or args.bpe_dir):
        raise InputError(
            "--dict without --spm or --bpe. Give the sentencepiece model it belongs to."
        )
    if bpe.given(args) and args.vocab_size:
        flag = bpe.given(args)
        raise InputError(f"--vocab-size with {flag} would be ignored. Leave one of them out.")
    if args.exclude_ends < 0 or (args.exclude_ends and not args.exclude):
        raise InputError(
            f"--exclude-ends {args.exclude_ends}: expected a number of characters above 0, with "
            "--exclude."
        )
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"{args.out} is a file. Give the name of the folder to write into.")
    subwords, dictionary = bpe.from_arguments(args)

    from fairseq_peft.text import raw_text

    lines, left_out = raw_text.read_weighted(args.raw, args.exclude, args.exclude_ends)
    if args.exclude:
        logger.info("%s lines left out, as they are in --exclude", f"{left_out:,}")
    train, valid = raw_text.hold_out(lines, args.valid_lines, seed=args.seed)
    kept = raw_text.without_copies(train, valid)
    if len(kept) < len(train):
        copies = len(train) - len(kept)
        logger.info("%s lines left out of train, as they hold a held-out text", f"{copies:,}")
    train, valid = raw_text.repeat(kept, args.seed), [line for line, _ in valid]
    with folders.merged(args.out) as new:
        if subwords:
            bpe.write_with_dictionary(subwords, dictionary, new, train)
        else:
            raw_text.train_tokenizer(train, new, args.vocab_size or 31_998, args.threads)
            subwords = bpe.find(new)
        for name, lines in (("valid", valid), ("train", train)):
            path = new / f"{name}.pieces"
            num_pieces = raw_text.write_pieces(subwords, lines, path, args.threads)
            logger.info("%s: %s lines, %s pieces", name, f"{len(lines):,}", f"{num_pieces:,}")
    repeated = len(set(valid) & set(train))
    if repeated:
        logger.info("%d different held-out lines also occur in train", repeated)
    return 0
