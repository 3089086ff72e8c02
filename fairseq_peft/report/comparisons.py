"""Each method against one of them, row by row of the test set: what may be concluded.

It needs what the runs predicted (``runs/predictions.py``). Runs of an earlier version have none.
"""

from __future__ import annotations

from fairseq_peft.report.references import BASELINE, FULL, reference_of, why_none
from fairseq_peft.report.significance import (
    LEVEL,
    bootstrap_interval,
    holm,
    mcnemar,
    wins_and_losses,
)
from fairseq_peft.runs import predictions

#: What a row gains; None where it is compared with nothing.
FIELDS = (
    "paired_with",
    "paired_seeds",
    "paired_rows",
    "paired_difference_mean",
    "paired_difference_low",
    "paired_difference_high",
    "paired_wins",
    "paired_losses",
    "mcnemar_p",
    "mcnemar_p_holm",
    "conclusion",
)


def add_comparisons(rows: list[dict], answers: dict, method: str = FULL) -> None:
    """Add ``FIELDS`` to all rows.

    Args:
        answers: (data, init, method) -> seed -> what the run answered (``answers.read_all``).
        method: what the others are compared with.
    """
    by_key = {_key(row): row for row in rows}
    for row in rows:
        row.update(dict.fromkeys(FIELDS))
    families = {}
    sizes = {key: by_key[key]["num_train_rows"] for key in answers}
    for key, mine in answers.items():
        other = reference_of(key, sizes, method)
        row = by_key[key]
        if other is None:
            reason = why_none(key, sizes, method)
            row["notes"] += [reason] if reason else []
            continue
        if _compare(row, mine, by_key[other], answers[other]):
            families.setdefault(other, []).append(row)
    for family in families.values():
        corrected = holm([row["mcnemar_p"] for row in family])
        for row, value in zip(family, corrected):
            row["mcnemar_p_holm"] = value
            row["conclusion"] = conclude(row, len(family))


def _compare(row: dict, mine: dict, reference: dict, others: dict) -> bool:
    """Fill in all but what Holm's correction gives; False, with a note, if nothing is common."""
    import numpy as np

    if row["init"] == BASELINE:  # it draws nothing: the same against every seed
        mine = dict.fromkeys(others, next(iter(mine.values())))
        trained = reference["seeds"]
    else:
        trained = set(row["seeds"]) & set(reference["seeds"])
    seeds = sorted(set(mine) & set(others))
    name = f"{reference['init']}/{reference['method']}"
    if not seeds:
        row["notes"].append(f"no seed has predictions of it and of {name}: not compared by row")
        return False
    classes = others[seeds[0]].classes
    if not all(np.array_equal(side[s].classes, classes) for side in (mine, others) for s in seeds):
        row["notes"].append(f"the classes of its test rows are not those of {name}: not compared")
        return False
    right, other_right = (np.stack([side[s].right for s in seeds]) for side in (mine, others))
    differences = right.astype(int) - other_right.astype(int)  # (seeds, rows)
    wins, losses = wins_and_losses(differences)
    low, high = bootstrap_interval(differences)
    row.update(
        paired_with=name,
        paired_seeds=len(seeds),
        paired_rows=differences.shape[1],
        paired_difference_mean=float(differences.mean()),
        paired_difference_low=low,
        paired_difference_high=high,
        paired_wins=wins,
        paired_losses=losses,
        mcnemar_p=mcnemar(differences),
    )
    if len(seeds) < len(trained):
        row["notes"].append(
            f"compared by row with {len(seeds)} of {len(trained)} seeds: the other runs, or those "
            f"of {name}, have no {predictions.NAME}"
        )
    return True


def conclude(row: dict, num_comparisons: int) -> str:
    """What may be said of a row: a difference only where p after Holm's correction is below 0.05
    and the interval leaves 0 out."""
    init, _, other = row["paired_with"].partition("/")
    mine = row["method"]
    if init != row["init"]:
        mine, other = f"{row['init']}/{mine}", row["paired_with"]
    low, high = row["paired_difference_low"], row["paired_difference_high"]
    seeds = f"{row['paired_seeds']} seed{'s' if row['paired_seeds'] > 1 else ''}"
    where = f"{seeds} and {row['paired_rows']:,} rows"
    word = verdict(row)
    if word:
        least, most = sorted((abs(low), abs(high)))
        text = f"{mine} is {word} than {other} by {_points(least)} to {_points(most)} points"
        text += f" ({where})"
        if row["paired_seeds"] == 1:
            text += "; one seed speaks of these runs, not of the methods"
        return text
    interval = f"between {100 * low:+.1f} and {100 * high:+.1f} points"
    text = f"{mine} and {other} cannot be told apart with {where} ({interval}"
    if _apart(row):
        text += f"; p is {row['mcnemar_p_holm']:.2f} after correction for {num_comparisons}"
        text += " comparisons" if num_comparisons > 1 else " comparison"
    elif _significant(row):
        text += "; on these rows they differ, but the seeds vary as much"
    return text + ")"


def verdict(row: dict) -> str | None:
    """``better`` or ``worse`` than what the row is compared with; None: not to be told apart."""
    if not (_apart(row) and _significant(row)):
        return None
    return "better" if row["paired_difference_low"] > 0 else "worse"


def _apart(row: dict) -> bool:
    """Whether the interval leaves 0 out."""
    return row["paired_difference_low"] > 0 or row["paired_difference_high"] < 0


def _significant(row: dict) -> bool:
    """Whether McNemar's test, corrected, finds a difference."""
    return row["mcnemar_p_holm"] < LEVEL


def _points(fraction: float) -> str:
    text = f"{100 * fraction:.1f}"
    return text if float(text) else f"{100 * fraction:.2f}"


def _key(result: dict) -> tuple:
    return tuple(result[name] for name in ("data", "init", "method"))
