"""What may be concluded from the rows of one data set, in one sentence."""

from __future__ import annotations

from fairseq_peft.report.comparisons import verdict
from fairseq_peft.report.merit import score_of
from fairseq_peft.report.references import BASELINE

MAX_NAMES = 6  # in a sentence


def name_of(row: dict) -> str:
    """What a row is called where the data set is clear: ``lora``, or ``scratch/lora``."""
    init, method = row["init"], row["method"]
    return method if init in ("pretrained", BASELINE) else f"{init}/{method}"


def joined(names: list[str]) -> str:
    """``a, b and c``; of many, the first ones and how many more."""
    if len(names) > MAX_NAMES:
        names = [*names[: MAX_NAMES - 1], f"{len(names) - MAX_NAMES + 1} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def headline(rows: list[dict]) -> str:
    """One sentence. It tells a difference only where the statistics of ``comparisons`` do."""
    score = score_of(rows)
    measured = [row for row in rows if score.mean(row) is not None]
    if not measured:
        return "Nothing may be concluded: no run was evaluated on test."
    best = max(measured, key=score.rank)
    if len(measured) == 1:
        return (
            f"{name_of(best)} reaches {score.text(best)}{score.unit} {score.name} with "
            f"{_seeds(best['num_seeds'])}; with one method alone, nothing may be concluded about "
            "methods."
        )
    compared = [row for row in measured if row.get("paired_with")]
    if not compared:
        return (
            "No difference may be concluded, as no runs are compared row by row; the "
            f"{'lowest' if score.lowest else 'highest'} {score.name} of {len(measured)} is that of "
            f"{name_of(best)}, "
            f"{score.text(best)}{score.unit}."
        )
    return _compared(compared)


def _compared(rows: list[dict]) -> str:
    """The sentence where the statistics have been made; of the reference that most rows have."""
    references = [row["paired_with"] for row in rows]
    reference = max(references, key=references.count)
    rows = [row for row in rows if row["paired_with"] == reference]
    found = {"better": [], "worse": [], None: []}
    for row in rows:
        found[verdict(row)].append(name_of(row))
    other = name_of(dict(zip(("init", "method"), reference.split("/", 1))))
    parts = []
    for word in ("better", "worse"):
        names = found[word]
        if names:
            verb = "is" if len(names) == 1 else "are"
            parts.append(f"{joined(names)} {verb} {word} than {other}")
    if found[None]:
        text = f"{joined(found[None])} cannot be told apart from "
        parts.append(text + ("it" if parts else other))
    least, most = (f(row["paired_seeds"] for row in rows) for f in (min, max))
    seeds = _seeds(most) if least == most else f"{least} to {most} seeds"
    sizes = {row["paired_rows"] for row in rows}
    where = seeds + (f" and {sizes.pop():,} test rows" if len(sizes) == 1 else "")
    text = f"{'; '.join(parts)} ({where})"
    if least == 1:
        text += "; one seed speaks of runs, not of methods"
    return text + "."


def _seeds(number: int) -> str:
    return f"{number} seed{'s' if number > 1 else ''}"
