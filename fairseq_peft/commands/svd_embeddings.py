"""Token embeddings and LM bias from co-occurrence counts, to start a pre-training from.

Reads the `train` split of a binarised masked-LM folder and writes OUT, an .npz with two float32
arrays, `embeddings` (V, C) and `lm_bias` (V,), for `fairseq-train --init-embeddings OUT`.
V = 4 specials + the lines of dict.txt + 1 for <mask>.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.files import whole

logger = logging.getLogger(__name__)


def add_arguments(parser):
    parser.add_argument(
        "data", metavar="DATA_BIN", type=Path, help="dict.txt, train.bin, train.idx"
    )
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--dim", type=int, help="--encoder-embed-dim of the model")
    size.add_argument("--arch", help="or its architecture: roberta_small, roberta_base_lora, ...")
    parser.add_argument("--out", type=Path, required=True, help="the .npz to write")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the SVD and of unseen rows (%(default)s)"
    )
    parser.add_argument("--window", type=int, default=5, help="tokens to each side (%(default)s)")
    parser.add_argument("--smoothing", type=float, default=0.75, help="of contexts (%(default)s)")
    parser.add_argument("--std", type=float, default=0.03, help="of the embeddings (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    parser.add_argument(
        "--neighbours",
        nargs="+",
        default=[],
        metavar="WORD",
        help="print the words nearest to these",
    )


def run(args) -> int:
    if args.dim is None:
        args.dim = _dimension(args.arch)
    for name in ("dim", "window", "std", "threads"):
        if getattr(args, name) <= 0:
            raise InputError(f"--{name} is {getattr(args, name)}. Expected a number above 0.")
    if args.out.suffix != ".npz":
        raise InputError(f"--out is {args.out}. Expected a name that ends in .npz.")

    import numpy as np

    from fairseq_peft.text.binarised import PAD, read_dictionary, read_tokens
    from fairseq_peft.text.svd import svd_embeddings, unigram_bias

    start = time.perf_counter()
    names = read_dictionary(args.data / "dict.txt")
    tokens, offsets = read_tokens(args.data / "train")
    rows = [_row(names, word) for word in args.neighbours]
    embeddings = svd_embeddings(
        tokens,
        offsets,
        len(names),
        args.dim,
        seed=args.seed,
        window=args.window,
        smoothing=args.smoothing,
        std=args.std,
        pad=PAD,
        num_threads=args.threads,
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with whole(args.out) as temporary, open(temporary, "wb") as file:
        np.savez(file, embeddings=embeddings, lm_bias=unigram_bias(tokens, len(names)))
    logger.info(
        "%s: %d x %d from %s tokens in %.1f s",
        args.out,
        *embeddings.shape,
        f"{len(tokens):,}",
        time.perf_counter() - start,
    )
    for row in rows:
        sys.stdout.write(_neighbour_line(names, embeddings, row) + "\n")
    return 0


def _dimension(arch: str) -> int:
    from fairseq_peft.architectures import SIZES

    for name, size in SIZES.items():
        if arch == name or arch.startswith(f"{name}_"):
            return size.embed_dim
    raise InputError(f"--arch '{arch}' is none of {', '.join(SIZES)}. Give its size as --dim.")


def _row(names: list[str], word: str) -> int:
    """The row of `word` as it begins a word (sentencepiece's U+2581), else as it stands."""
    for name in (f"\u2581{word}", word):
        if name in names:
            return names.index(name)
    raise InputError(f"--neighbours: neither '\u2581{word}' nor '{word}' is a piece of dict.txt.")


def _neighbour_line(names, embeddings, row) -> str:
    from fairseq_peft.text.svd import nearest

    found = "  ".join(f"{names[i]} {cosine:.2f}" for i, cosine in nearest(embeddings, row))
    return f"{names[row]}: {found}".replace("\u2581", "")
