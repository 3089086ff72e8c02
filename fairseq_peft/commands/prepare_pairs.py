"""Texts of two languages -> pieces -> a data folder for fairseq's task translation.

A split is one or several SOURCE:TARGET, two files with a sentence a line; with SOURCE:TARGET:TAG
the word TAG, which is one piece of its own, stands in front of each source: so one model translates
into several languages. Rows stay in their order. OUT gets sentencepiece.bpe.model, dict.txt for
both languages, and what fairseq-train and fairseq-generate read. The model is trained on train,
unless --spm gives another: that of the base whose dictionary these data need.
"""

from __future__ import annotations

import logging
from pathlib import Path

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
    from fairseq_peft.text import bpe, raw_text

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
    args.out.mkdir(parents=True, exist_ok=True)
    if args.spm:
        raw_text.copy_tokenizer(args.spm, args.dict, args.out)
    else:
        if "train" not in splits:
            raise InputError("No text to train a sentencepiece model on: give --train, or --spm.")
        lines = [text for pair in splits["train"] for text in pair]
        lines += raw_text.read_lines(args.spm_text)
        symbols = dict.fromkeys((*tags, *args.symbols))
        raw_text.train_tokenizer(lines, args.out, args.vocab_size or 8000, symbols=symbols)
    subwords = bpe.find(args.out)
    for tag in tags:
        if tag not in raw_text.pieces_of(raw_text.load_tokenizer(args.out / raw_text.MODEL_NAME)):
            raise InputError(
                f"{args.spm} has no piece {tag}. Train the model with it: --symbols {tag}."
            )
    write(args.out, subwords, splits, (args.source_lang, args.target_lang))
    logger.info(
        "%s: %s", args.out, ", ".join(f"{split} {len(pairs)}" for split, pairs in splits.items())
    )
    return 0
