"""Targets that are numbers: ``label/SPLIT.label``, one a line, as stock fairseq has them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from fairseq_peft.errors import InputError

#: Of fp32, in which they are.
LARGEST = float(np.finfo(np.float32).max)


def read_numbers(data: str | Path, split: str) -> np.ndarray:
    """(N,) float32 targets of a split.

    Raises:
        InputError: the file is missing, or a line is no finite number.
    """
    path = Path(data) / "label" / f"{split}.label"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist: {data} has no split {split!r}. Prepare it "
            "(scripts/prepare_data.sh), or name other splits with --valid-subset (finetune and "
            "sweep: --subsets)."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}). Prepare the data again.") from None
    numbers = []
    for number, line in enumerate(lines, start=1):
        try:
            value = float(line)
        except ValueError:
            value = math.nan
        if not abs(value) <= LARGEST:  # NaN is not
            raise InputError(
                f"{path}:{number}: {line[:40]!r} is no number. Prepare the data again."
            )
        numbers.append(value)
    return np.array(numbers, dtype=np.float32)
