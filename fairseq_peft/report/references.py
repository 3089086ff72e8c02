"""What a row of the report is compared with: full fine-tuning, or another method that the user
names, on as many training rows.

``--train-examples 64`` trains on 64 drawn rows, under a name such as ``lora-64``. Such a row and
one that saw all rows differ in more than the method, so each number of rows stands for itself:
``lora-64`` is compared with ``full-64``.

A key is (data, init, method).
"""

from __future__ import annotations

FULL = "full"  # what the other methods are compared with, unless the user names another one
BASELINE = "baseline"
ALIKE = 0.9  # numbers of rows that count as the same: dropped duplicates are fewer


def reference_of(key: tuple, sizes: dict[tuple, int | None], method: str = FULL) -> tuple | None:
    """The key that a row is compared with: full fine-tuning of the same init; for scratch/full and
    for baselines, that of pretrained (of scratch, where there is no other).

    Args:
        sizes: key -> training rows (None: not known), of all rows that may be compared.
        method: in the place of full fine-tuning.
    """
    data, init, _ = key
    if init == BASELINE or _is(method, key, sizes):
        inits = () if init == "pretrained" else ("pretrained", "scratch")
    else:
        inits = (init,)
    for one in inits:
        found = [
            other
            for other in sizes
            if other[:2] == (data, one)
            and other != key
            and _is(method, other, sizes)
            and _alike(sizes[key], sizes[other])
        ]
        if found:
            return min(found, key=lambda other: other[2] != method)
    return None


def why_none(key: tuple, sizes: dict[tuple, int | None], method: str = FULL) -> str | None:
    """Why a row is compared with nothing, where only the number of training rows keeps it from
    that."""
    if _is(method, key, sizes):
        return None
    other = reference_of(key, dict.fromkeys(sizes), method)
    if other is None:
        return None
    return (
        f"it was trained on {sizes[key]:,} rows, {other[1]}/{other[2]} on {sizes[other]:,}, and no "
        f"{method} on as many: not compared by row"
    )


def _is(method: str, key: tuple, sizes: dict) -> bool:
    return without_number(key[2], sizes[key]) == method


def _alike(a: int | None, b: int | None) -> bool:
    return a is None or b is None or min(a, b) >= ALIKE * max(a, b)


def without_number(method: str, number: int | None) -> str:
    """``lora-64`` trained on 64 rows -> ``lora``; any other name as it is."""
    for separator in "-_":
        if method.endswith(f"{separator}{number}"):
            return method[: -len(f"{separator}{number}")] or method
    return method


def without_drawn(rows: list[dict]) -> list[dict]:
    """The rows of a data set without those trained on a drawn part of it. A baseline stays: it
    says nothing of how many rows the runs saw."""
    trained = [row for row in rows if row["init"] != BASELINE]
    most = max((row["num_train_rows"] or 0 for row in trained), default=0)
    drawn = [row for row in trained if (row["num_train_rows"] or most) < ALIKE * most]
    return [row for row in rows if not any(row is one for one in drawn)]
