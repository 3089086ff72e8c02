"""How the runs were made: what differs between their configurations, their commands, versions and
machines."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePath

from fairseq_peft.errors import InputError
from fairseq_peft.report.html.words import name_of
from fairseq_peft.report.runs import Run
from fairseq_peft.runs import plan

#: Fields of a plan that are shown elsewhere, or name what its fingerprint says better.
_SHOWN_ELSEWHERE = ("data", "seed", "versions", "flags", "peft")
_DIGESTS = ("data_sha256", "base_sha256")
KNOBS = "of the method"
NOT_GIVEN = "–"
MAX_COMMANDS = 60
MAX_NAMES = 4  # of rows with the same value


def configuration(run: Run) -> tuple[dict[str, str], bool]:
    """Name -> value, as text, of all that a run says of how it was made; and whether it has a plan,
    which says the most."""
    result = run.result
    try:
        made = plan.read(run.path)
    except InputError:
        made = None
    found = {}
    if made is not None:
        found.update({k: v for k, v in vars(made).items() if k not in _SHOWN_ELSEWHERE})
    found.update(result["hyperparameters"])
    found["training rows"] = result["rows"].get("train")
    for flag in made.flags if made is not None else ():
        name, _, value = flag.partition(" ")
        found[name] = value or "given"
    for name in _DIGESTS:
        if found.get(name):
            found[name] = found[name][:12]
    knobs = [f"{name} {_text(value)}" for name, value in result["method_config"].items()]
    found[KNOBS] = ", ".join(knobs) or "none"
    return {name: _text(value) for name, value in found.items()}, made is not None


def _text(value) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def differing(rows: list[dict], runs: list[Run]) -> tuple[dict, dict]:
    """(name -> [(value, names of the rows that have it), ...] of what differs, what all share).

    Where the seeds of one row differ, its value names each. Of many rows with the same value only
    their number is said, once a name. A row whose runs do not say a value is not named there.
    """
    by_row = {(row["init"], row["method"]): [] for row in rows}
    for run in runs:
        by_row[run.result["init"], run.result["method"]].append(configuration(run))
    every = [one for each in by_row.values() for one in each]
    names = dict.fromkeys(name for found, _ in every for name in found if name != KNOBS)
    titles = {(row["init"], row["method"]): name_of(row) for row in rows}
    shared, differ = {}, {}
    for name in (*names, KNOBS):
        having, distinct = {}, set()
        for key, each in by_row.items():
            # a run without a plan does not say: that is no difference
            said = (found.get(name, NOT_GIVEN if planned else None) for found, planned in each)
            values = list(dict.fromkeys(value for value in said if value is not None))
            distinct.update(values)
            if values:
                having.setdefault(" / ".join(values), []).append(titles[key])
        if len(distinct) == 1:
            shared[name] = distinct.pop()
            continue
        most = max(having, key=lambda value: len(having[value]))
        if len(having) > 1 and len(having[most]) > MAX_NAMES:
            others = len(having.pop(most))
            having[most] = [f"{others} others"]  # which come last
        differ[name] = [(value, ", ".join(having[value])) for value in having]
    return differ, shared


def commands(rows: list[dict], runs: list[Run]) -> list[dict]:
    """``name``, ``command``, its ``seed`` and ``others``, a dict a command: seeds that differ in
    nothing but the seed share one."""
    titles = {(row["init"], row["method"]): name_of(row) for row in rows}
    groups = {}
    for run in runs:
        key = run.result["init"], run.result["method"]
        command = readable(str(run.result.get("command") or ""))
        if command:
            seed = run.result["seed"]
            groups.setdefault((key, without_seed(command, seed)), []).append((seed, command))
    return [
        {
            "name": titles[key],
            "command": sorted(found)[0][1],
            "seed": sorted(found)[0][0],
            "others": [seed for seed, _ in sorted(found)[1:]],
        }
        for key in titles
        for (other, _), found in groups.items()
        if other == key
    ]


def readable(command: str) -> str:
    """The program by its name, not by the path of its file."""
    program, _, rest = command.partition(" ")
    path = PurePath(program)
    if path.parts[-2:] == ("fairseq_cli", "train.py"):
        return f"fairseq-train {rest}"
    return f"{path.name} {rest}".strip() if path.is_absolute() else command


def without_seed(command: str, seed: int) -> str:
    return re.sub(rf"(--seed[ =]|seed){seed}\b", r"\1N", command)


def machines(runs: list[Run]) -> list[tuple[int, dict]]:
    """(number of runs, what they ran with) of each set of versions and hardware, most first."""
    found = Counter()
    for run in runs:
        result = run.result
        described = {**(result.get("versions") or {})}
        described["device"] = result.get("device")
        described["threads"] = result.get("threads")
        found[tuple((k, str(v)) for k, v in described.items() if v is not None)] += 1
    return [(number, dict(described)) for described, number in found.most_common()]
