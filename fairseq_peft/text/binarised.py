"""Read what ``fairseq-preprocess`` wrote, as plain arrays and without importing fairseq."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fairseq_peft.errors import InputError

MAGIC = b"MMIDIDX\x00\x00"
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
PAD = SPECIALS.index("<pad>")
# fairseq/data/indexed_dataset.py; text is uint16 below 65,500 types and int32 above.
DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4", 10: "<u8"}


def read_dictionary(path: str | Path) -> list[str]:
    """The rows of a masked LM's embedding: 4 specials, the lines of dict.txt, ``<mask>``."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist. Expected the dict.txt of a binarised folder.")
    try:
        lines = path.read_bytes().decode("utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error}). Expected lines `piece count`.") from None
    pieces = [line.removesuffix(" #fairseq:overwrite").rsplit(" ", 1)[0] for line in lines]
    return [*SPECIALS, *pieces, "<mask>"]


def read_tokens(prefix: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """``prefix.bin`` and ``prefix.idx`` -> tokens (N,) int32, offsets (sentences + 1,) int64.

    Raises:
        InputError: a file is missing, or not in fairseq's default (mmap) format, or cut short.
    """
    index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    for path in (index, data):
        if not path.is_file():
            raise InputError(f"{path} does not exist. Expected what fairseq-preprocess writes.")
    header = index.read_bytes()
    if header[:9] != MAGIC or header[17:18] == b"" or header[17] not in DTYPES:
        raise InputError(
            f"{index} is not fairseq's `mmap` format. Binarise without --dataset-impl."
        )
    num_sentences = int.from_bytes(header[18:26], "little")
    tokens = np.fromfile(data, dtype=DTYPES[header[17]]).astype(np.int32)
    sizes = header[26 : 26 + 4 * num_sentences]
    sizes = np.frombuffer(sizes[: len(sizes) // 4 * 4], dtype="<i4")
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    if len(sizes) != num_sentences or offsets[-1] != len(tokens) or (sizes < 0).any():
        raise InputError(
            f"{data} holds {len(tokens)} tokens, {index} speaks of {offsets[-1]} in "
            f"{num_sentences} sentences. One of them is cut short: run fairseq-preprocess again."
        )
    return tokens, offsets
