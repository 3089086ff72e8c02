"""Texts of two languages -> pieces -> a data folder for fairseq's task translation.

A split is one or several SOURCE:TARGET, two files with a sentence a line; with SOURCE:TARGET:TAG
the word TAG, which is one piece of its own, stands in front of each source: so one model translates
into several languages. Rows stay in their order. OUT gets sentencepiece.bpe.model, dict.txt for
both languages, and what fairseq-train and fairseq-generate read. The model is trained on train,
unless --spm gives another: that of the base whose dictionary these data need. An OUT that is there
keeps its other splits if they have the same dictionary; else all of them have to be given again.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fairseq_peft import folders
from fairseq_peft.errors import InputError

logger = logging.getLogger(__name__)
SPLITS = ("train", "valid", "test")


def add_arguments(parser) -> None:
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write into")
    parser.add_argument("-s", "--source-lang", required=True, help="for example en")
    parser.add_argument("-t", "--target-lang", required=True, help="for example fr")
    for split in SPLITS:
        parser.add_argument(
            f"--{split}", nargs="+", default=[], metavar="SOURCE:TARGET[:TAG]", help="its files"
        )
    parser.add_argument("--train-rows", type=int, help="only the first so many of each of train")
    parser.add_argument("--spm", type=Path, help="a sentencepiece model (otherwise one is trained)")
    parser.add_argument("--dict", type=Path, help="its dict.txt (otherwise in the model's order)")
    parser.add_argument("--vocab-size", type=int, help="pieces of a trained model (8000)")
    parser.add_argument(
        "--spm-text", nargs="+", type=Path, default=[], help="more text to train it on"
    )
    parser.add_argument(
        "--symbols", nargs="+", default=[], metavar="TAG", help="more words of one piece"
    )


def run(args) -> int:
    for flag in ("vocab_size", "spm_text", "symbols"):
        if args.spm and getattr(args, flag):
            raise InputError(
                f"--{flag.replace('_', '-')} with --spm would be ignored: no model is trained. "
                "Leave one of them out."
            )
    if args.dict and not args.spm:
        raise InputError("--dict without --spm: give the sentencepiece model it belongs to.")
    if args.train_rows is not None and args.train_rows < 1:
        raise InputError(f"--train-rows {args.train_rows}: expected at least 1.")

    from fairseq_peft.data.translation_pairs import Source, write
    from fairseq_peft.text import bpe

    given = {split: [Source.parse(text) for text in getattr(args, split)] for split in SPLITS}
    if not any(given.values()):
        raise InputError("No data: give --train, --valid or --test.")
    splits = {
        split: [
            pair
            for source in sources
            for pair in source.read(args.train_rows if split == "train" else None)
        ]
        for split, sources in given.items()
        if sources
    }
    tags = dict.fromkeys(one.tag for sources in given.values() for one in sources if one.tag)
    if not args.spm and "train" not in splits:
        raise InputError("No text to train a sentencepiece model on: give --train, or --spm.")
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"{args.out} is a file. Give the name of the folder to write into.")
    # What is refused, or ends at whatever moment, leaves OUT as it was.
    with folders.merged(args.out) as new:
        make_tokenizer(args, splits.get("train", ()), tags, new)
        write(new, bpe.find(new), splits, (args.source_lang, args.target_lang))
        check_dictionary(args.out, new)
    logger.info(
        "%s: %s", args.out, ", ".join(f"{split} {len(pairs)}" for split, pairs in splits.items())
    )
    return 0


def make_tokenizer(args, train, tags, folder: Path) -> None:
    """Put the model into ``folder``, with its dict.txt: that of --spm, or one trained on ``train``.

    Raises:
        InputError: there can be none, or it has not all ``tags``.
    """
    from fairseq_peft.text import raw_text

    if args.spm:
        raw_text.copy_tokenizer(args.spm, args.dict, folder)
    else:
        lines = [text for pair in train for text in pair]
        lines += raw_text.read_lines(args.spm_text)
        symbols = dict.fromkeys((*tags, *args.symbols))
        raw_text.train_tokenizer(lines, folder, args.vocab_size or 8000, symbols=symbols)
    pieces = raw_text.pieces_of(raw_text.load_tokenizer(folder / raw_text.MODEL_NAME))
    for tag in tags:
        if tag not in pieces:
            raise InputError(
                f"{args.spm} has no piece {tag}. Train the model with it: --symbols {tag}."
            )


def check_dictionary(out: Path, new: Path) -> None:
    """Raise InputError where splits would stay in ``out`` that were coded with other dictionaries
    than those in ``new``."""
    staying = [path.stem for path in sorted(out.glob("*.idx")) if not (new / path.name).exists()]
    for path in sorted(new.glob("dict.*")):
        before = out / path.name
        if staying and before.is_file() and before.read_bytes() != path.read_bytes():
            raise InputError(
                f"{out} holds {staying[0]}, coded with another dictionary ({path.name}), and it is "
                "not written anew. Give the files of all its splits, or its own sentencepiece "
                "model and dictionary (--spm, --dict), or another folder."
            )
