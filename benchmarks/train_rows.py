"""The rows of train_speed.py's contestants: drawn or read, and written once for all of them."""

from __future__ import annotations

import shutil
import statistics
import struct
from pathlib import Path

import numpy as np
from harness import InputError

from fairseq_peft.text.binarised import MAGIC, read_tokens

BOS, EOS = 0, 2

#: Lengths of the synthetic rows: the reviews of cls-books have a median of 103 and a mean of 140.
LENGTHS = {"median": 103, "sigma": 0.8, "shortest": 8}


def synthetic_rows(count: int, limit: int, vocab: int, seed: int = 0):
    """Rows of random words whose lengths are like those of reviews, and labels 0 and 1."""
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(np.log(LENGTHS["median"]), LENGTHS["sigma"], count).astype(int)
    lengths = np.clip(lengths, min(LENGTHS["shortest"], limit), limit)
    rows = [rng.integers(4, vocab - 1, length).tolist() for length in lengths]
    return rows, [row % 2 for row in range(count)]


def real_rows(data: Path, count: int, limit: int, seed: int = 0):
    """``count`` training rows of a folder of prepare_data.sh, drawn at random, and labels."""
    tokens, offsets = read_tokens(data / "input0" / "train")
    labels, ends = read_tokens(data / "label" / "train")
    if len(offsets) - 1 < count:
        raise InputError(
            f"{data} has {len(offsets) - 1} training rows, --steps x --batch-size are {count}: "
            "give fewer steps."
        )
    drawn = np.random.default_rng(seed).permutation(len(offsets) - 1)[:count]
    rows = [tokens[offsets[i] : offsets[i + 1] - 1][:limit].tolist() for i in drawn]
    return rows, [int(labels[ends[i]]) - 4 for i in drawn]


def write_indexed(prefix: Path, rows) -> None:
    """Rows in fairseq's ``mmap`` format: ``prefix.bin`` and ``prefix.idx``."""
    sizes = np.array([len(row) for row in rows], dtype="<i4")
    flat = np.concatenate([np.asarray(row, dtype="<i4") for row in rows])
    flat.tofile(f"{prefix}.bin")
    starts = 4 * (np.cumsum(sizes, dtype="<i8") - sizes)
    header = MAGIC + struct.pack("<QBQ", 1, 4, len(sizes))
    Path(f"{prefix}.idx").write_bytes(header + sizes.tobytes() + starts.tobytes())


def write_data(folder: Path, rows, labels, source: Path | None, vocab: int, valid: int = 8) -> dict:
    """Write ``rows`` once for all contestants: a binarised folder, and rows.npz for Hugging Face.

    Returns:
        What is to know of them; ``rows_hash`` is that of the rows as models see them.
    """
    from meter import rows_hash

    for part in ("input0", "label"):
        (folder / part).mkdir(parents=True)
        if source is not None:
            shutil.copy(source / part / "dict.txt", folder / part)
    if source is None:
        words = "".join(f"w{i} {vocab - i}\n" for i in range(vocab - 5))
        (folder / "input0" / "dict.txt").write_text(words)
        (folder / "label" / "dict.txt").write_text("0 1\n1 1\n")
    for split, end in (("train", len(rows)), ("valid", valid)):
        write_indexed(folder / "input0" / split, [[*row, EOS] for row in rows[:end]])
        write_indexed(folder / "label" / split, [[4 + label, EOS] for label in labels[:end]])
    seen = [[BOS, *row, EOS] for row in rows]
    lengths = [len(row) for row in seen]
    np.savez(
        folder / "rows.npz",
        tokens=np.concatenate([np.array(row, dtype=np.int32) for row in seen]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=np.array(labels),
    )
    return {
        "source": source.name if source else "synthetic",
        "rows": len(rows),
        "mean_length": statistics.fmean(lengths),
        "longest": max(lengths),
        "rows_hash": rows_hash(seen),
    }


def count_lines(path: Path, skip: str = "\0") -> int:
    return sum(not line.startswith(skip) for line in path.read_text("utf-8").splitlines())
