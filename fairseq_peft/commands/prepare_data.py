"""Raw text and labels -> checks -> pieces -> fairseq-preprocess -> a data folder.

RAW is a directory with {train,valid,test}.{review,label} (a text or a label a line; .review2 for
pairs) or with {train,valid,test}.{tsv,csv,jsonl,json} (dev is valid, too), or one such table with
text, label and perhaps text2 and split. Files may be packed (.gz, .xz). A line break in a text
becomes a space. DEST appears when all is done and checked, not before. It has

    input0/ (input1/) label/   what fairseq-preprocess makes: tokens, and classes in a fixed order
    dict.txt sentencepiece.bpe.model labels.txt stats.json
    raw/                       the rows used, as text

Pieces are sentencepiece's, or those of --bpe, whose files, and bpe.json, are then in DEST.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import logging
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from fairseq_peft import folders
from fairseq_peft.errors import InputError
from fairseq_peft.files import json_of, json_text
from fairseq_peft.scores import CLASSES, NUMBER
from fairseq_peft.text import bpe, kinds, tables

SCHEMA = 1
DONE = "stats.json"  # written last: a folder that has it is finished
DEFAULTS = {"vocab_size": 7998, "seed": 1, "valid_share": 0.1, "test_share": 0.1}
logger = logging.getLogger(__name__)


def add_arguments(parser) -> None:
    parser.add_argument("raw", type=Path, help="directory, or a table: .tsv, .csv, .jsonl, .json")
    parser.add_argument("dest", type=Path, help="data folder to make, for example data-bin/NAME")
    tables.add_arguments(parser)
    parser.add_argument("--spm", type=Path, help="sentencepiece model (default: train one)")
    bpe.add_arguments(parser)
    parser.add_argument("--dict", type=Path, help="their dict.txt (default: pieces in order)")
    parser.add_argument(
        "--vocab-size",
        type=int,
        metavar="N",
        help="train one of N pieces: N + 2 embedding rows (7998)",
    )
    parser.add_argument(
        "--spm-text", type=Path, metavar="FILE", help="train it on FILE (default: texts of train)"
    )
    parser.add_argument(
        "--drop-duplicates",
        choices=["train"],
        help="drop rows of train whose text valid or test has",
    )
    parser.add_argument("--max-positions", type=int, default=256, help="of the model (%(default)s)")
    kinds.add_arguments(parser)
    parser.add_argument("--seed", type=int, help="draws the splits of one table (1)")
    for name in ("valid", "test"):
        parser.add_argument(
            f"--{name}-share",
            type=float,
            help=f"share of the rows for {name}, of one table without split (0.1)",
        )
    parser.add_argument("--force", action="store_true", help="replace a finished DEST")


def run(args) -> int:
    from fairseq_peft.text import corpus as corpora

    check_options(args)
    subwords, dictionary = bpe.from_arguments(args)
    given = {name: getattr(args, name) for name in DEFAULTS}
    knobs = {name: DEFAULTS[name] if given[name] is None else given[name] for name in DEFAULTS}
    corpus = corpora.read_corpus(
        args.raw,
        knobs["seed"],
        knobs["valid_share"],
        knobs["test_share"],
        tables.columns_of(args),
        args.kind,
        args.label_separator or corpora.SEPARATOR,
    )
    settings = {
        "raw_sha256": digest(
            repr(
                [(s, r.label, r.text, r.text2) for s in corpus.splits for r in corpus.rows[s]]
            ).encode()
        ),
        "spm_sha256": args.spm and digest(read(args.spm)),
        "dict_sha256": dictionary and digest(read(dictionary)),
        "bpe": None if args.spm or subwords is None else told(subwords),
        "vocab_size": None if subwords else knobs["vocab_size"],
        "spm_text_sha256": args.spm_text and digest(read(args.spm_text)),
        "drop_duplicates": args.drop_duplicates,
        "max_positions": args.max_positions,
        **({} if args.kind == CLASSES else {"kind": args.kind}),
    }
    if is_finished(args.dest, settings, args.force):
        logger.info("%s is finished already, from the same data and settings.", args.dest)
        return 0

    with folders.replaced(args.dest) as build:
        stats = build_folder(args, corpus, settings, build, subwords, dictionary)
    report(stats, args.dest)
    return 0


def check_options(args) -> None:
    """Refuse what would be ignored, and numbers out of range."""
    if args.dict and not (args.spm or args.bpe or args.bpe_dir):
        raise InputError(
            "--dict without --spm or --bpe: give the sentencepiece model it belongs to, too."
        )
    for name in ("vocab_size", "spm_text"):
        if bpe.given(args) and getattr(args, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"{flag} has no effect with {bpe.given(args)}, which is a finished model. Drop one."
            )
    kinds.check_arguments(args)
    if args.vocab_size is not None and args.vocab_size < 16:
        raise InputError(f"--vocab-size {args.vocab_size}: expected at least 16.")
    if args.max_positions < 8:
        raise InputError(f"--max-positions {args.max_positions}: expected at least 8.")
    if args.raw.is_dir():
        for name in ("seed", "valid_share", "test_share"):
            if getattr(args, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} has no effect: {args.raw} comes in splits. Drop it.")
    if importlib.util.find_spec("fairseq_cli") is None:
        raise InputError("fairseq is not installed in this Python. Run scripts/setup.sh.")


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_finished(dest: Path, settings: dict, force: bool) -> bool:
    """Is DEST there and made from the same data? Raises InputError if it is anything else."""
    if not dest.exists():
        return False
    if not dest.is_dir():
        raise InputError(f"{dest} exists and is not a folder. Choose another name.")
    if not any(dest.iterdir()):
        return False
    if not (dest / DONE).is_file():
        raise InputError(
            f"{dest} exists and has no {DONE}, so this command did not make it. Move it away."
        )
    if force:
        return False
    try:
        before = dict(json_of((dest / DONE).read_bytes()).get("settings", {}))
    except (ValueError, AttributeError, TypeError):
        before = {DONE: "damaged"}
    names = dict.fromkeys([*settings, *before])
    changed = [name for name in names if settings.get(name) != before.get(name)]
    if changed:
        raise InputError(
            f"{dest} was made with other data or settings ({', '.join(changed)}). "
            f"Choose another name, or replace it with --force (FORCE=1)."
        )
    return True


def told(subwords) -> dict:
    """What stats.json says of a ``--bpe``, and of the content of its files."""
    files = {name: digest(read(path)) for name, path in subwords.files.items() if name != bpe.TOLD}
    return {"kind": subwords.kind, **subwords.options, "sha256": files}


def build_folder(args, corpus, settings: dict, build: Path, subwords, dictionary) -> dict:
    """Everything DEST shall have, in ``build``; returns what stats.json says."""
    from fairseq_peft.text import checks, raw_text
    from fairseq_peft.text.binarised import SPECIALS, read_dictionary

    duplicates, num_rows = checks.duplicates(corpus), len(corpus.rows["train"])
    labels = corpus.labels
    if args.drop_duplicates:
        corpus = checks.drop_duplicates(corpus)

    if subwords is not None:
        texts = (t for row in corpus.rows["train"] for t in (row.text, row.text2) if t)
        bpe.write_with_dictionary(subwords, dictionary, build, texts)
    else:
        lowered = train_tokenizer(args, corpus, build)
        if lowered is not None:
            corpus.notes["vocabulary_lowered_to"] = lowered
    subwords = bpe.find(build)
    dictionary = read_dictionary(build / raw_text.DICT_NAME)
    known = set(dictionary) - {*SPECIALS, "<mask>"}

    tokens = {split: tokenise(subwords, corpus.rows[split]) for split in corpus.splits}
    stats = {
        "schema": SCHEMA,
        "raw": str(args.raw.resolve()),
        "settings": settings,
        "kind": corpus.kind,
        "labels": labels,
        "pairs": corpus.has_pairs,
        "vocabulary_rows": len(dictionary),
        "ids_are_pieces_plus_1": dictionary[4:-1] == subwords.vocabulary(),
        "max_positions": args.max_positions,
        "max_tokens": args.max_positions - checks.SPECIAL_TOKENS[corpus.has_pairs],
        "splits": {
            split: checks.split_statistics(
                corpus.rows[split], tokens[split], known, args.max_positions, corpus.kind
            )
            for split in corpus.splits
        },
        "frequent_unknown": checks.frequent_unknown(
            [texts for split in corpus.splits for texts in tokens[split]], known
        ),
        "duplicates": duplicates,
        "dropped_train_rows": num_rows - len(corpus.rows["train"]),
        "notes": corpus.notes,
    }
    if corpus.kind != NUMBER:
        write_lines(build / "labels.txt", labels)
    if corpus.kind != CLASSES:
        write_lines(build / "kind.txt", [corpus.kind])
    for split in corpus.splits:
        rows = corpus.rows[split]
        write_lines(build / "raw" / f"{split}.review", [row.text for row in rows])
        write_lines(build / "raw" / f"{split}.label", [row.label for row in rows])
        if corpus.has_pairs:
            write_lines(build / "raw" / f"{split}.review2", [row.text2 for row in rows])
    binarise(build, corpus, tokens, dictionary)
    write_lines(build / DONE, [json_text(stats, indent=1)])
    return stats


def train_tokenizer(args, corpus, build: Path) -> int | None:
    """Train one in ``build``; returns its pieces if they are fewer than the default, else None.

    A number that was asked for is not changed.
    """
    from fairseq_peft.text import raw_text

    vocab_size = DEFAULTS["vocab_size"] if args.vocab_size is None else args.vocab_size
    if args.spm_text:
        texts = list(raw_text.read_lines([args.spm_text]))
    else:
        texts = [text for row in corpus.rows["train"] for text in (row.text, row.text2) if text]
    logger.info("training sentencepiece: %d pieces from %d texts", vocab_size, len(texts))
    try:
        raw_text.train_tokenizer(texts, build, vocab_size, num_threads=1)
        return None
    except raw_text.TooManyPieces as error:
        if args.vocab_size is not None:
            raise
        most = error.most
    logger.warning(
        "The text is too small for the default of %d pieces; it has %d. Those are taken.",
        vocab_size,
        most,
    )
    raw_text.train_tokenizer(texts, build, most, num_threads=1)
    return most


def tokenise(subwords, rows) -> list[list[list[str]]]:
    """The pieces of each text of each row, as fairseq reads them."""
    tokens = []
    for row in rows:
        pieces = subwords.encode([text for text in (row.text, row.text2) if text is not None])
        if not all(pieces):
            raise InputError(f"{row.where}: {row.text!r} has no token left after {subwords.kind}.")
        tokens.append(pieces)
    return tokens


def binarise(build: Path, corpus, tokens, dictionary: list[str]) -> None:
    """Run fairseq-preprocess once for each field, then compare what it wrote, token by token."""
    from fairseq_peft.text.binarised import SPECIALS

    text_dir = build / "text"
    num_texts = 2 if corpus.has_pairs else 1
    fields = {
        f"input{n}": {split: [texts[n] for texts in tokens[split]] for split in corpus.splits}
        for n in range(num_texts)
    }
    if corpus.kind == NUMBER:  # stock fairseq's own layout
        for split in corpus.splits:
            lines = [row.label for row in corpus.rows[split]]
            write_lines(build / "label" / f"{split}.label", lines)
    else:
        fields["label"] = {
            split: [corpus.names(row) for row in corpus.rows[split]] for split in corpus.splits
        }
    # A given dictionary is neither sorted by frequency nor padded, so class k is line k.
    write_lines(text_dir / "label.dict", [f"{label} 1" for label in corpus.labels])
    for name, rows_of in fields.items():
        srcdict = text_dir / "label.dict" if name == "label" else build / "dict.txt"
        for split, rows in rows_of.items():
            write_lines(text_dir / f"{split}.{name}", [" ".join(row) for row in rows])
        preprocess(text_dir, name, corpus.splits, build / name, srcdict)
        words = [*SPECIALS, *corpus.labels] if name == "label" else dictionary
        for split, rows in rows_of.items():
            compare(build / name / split, rows, words)
    shutil.rmtree(text_dir)


def preprocess(text_dir: Path, name: str, splits: list[str], dest: Path, srcdict: Path) -> None:
    """``fairseq-preprocess`` without relying on the PATH; more workers are not faster."""
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "--only-source", "--workers", "1"]
    for split in splits:
        command += [f"--{split}pref", str(text_dir / f"{split}.{name}")]
    command += ["--srcdict", str(srcdict), "--destdir", str(dest)]
    logger.info("+ %s", shlex.join(command))
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        output = done.stdout.decode(errors="replace")[-4000:]
        full = os.strerror(errno.ENOSPC)
        if full in str(output):
            raise OSError(errno.ENOSPC, full, str(dest))
        raise RuntimeError(f"fairseq-preprocess exited with {done.returncode}:\n{output}")
    (dest / "preprocess.log").unlink()  # speaks of the temporary folder only


def compare(prefix: Path, rows: list[list[str]], words: list[str]) -> None:
    """Is every token of the binarised ``prefix`` the one that ``rows`` ask for?"""
    import numpy as np

    from fairseq_peft.text.binarised import SPECIALS, read_tokens

    ids = {word: number for number, word in enumerate(words)}
    unk, eos = SPECIALS.index("<unk>"), SPECIALS.index("</s>")
    expected = [[ids.get(token, unk) for token in row] + [eos] for row in rows]
    tokens, offsets = read_tokens(prefix)
    same_lengths = np.array_equal(np.diff(offsets), [len(row) for row in expected])
    if not same_lengths or not np.array_equal(tokens, np.concatenate(expected)):
        raise RuntimeError(
            f"{prefix} is not what the text says: {len(offsets) - 1} rows and {len(tokens)} "
            f"tokens, expected {len(rows)} and {sum(map(len, expected))}."
        )


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


def report(stats: dict, dest: Path) -> None:
    from fairseq_peft.text.checks import report_lines

    for line in report_lines(stats):
        logger.info("%s", line)
    logger.info("%s is ready (the same figures: %s)", dest, dest / DONE)
