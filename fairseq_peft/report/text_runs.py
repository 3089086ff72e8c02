"""The table of runs whose models write texts: RUNS/<method>/seed<k>/ with scores.json, train.log.

scores.json is what ``fairseq-peft score`` writes. Its first part is what the runs learned, its last
one what they could forget of it, against the run ``base``, which learned nothing. Texts that others
wrote may stand beside: another file of scores, whose parts are systems.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.files import json_of, whole
from fairseq_peft.report import tables
from fairseq_peft.runs.log import number

BASE, FULL = "base", "full"
PARAMETERS = re.compile(r"num\. shared model params: [\d,]+ \(num\. trained: ([\d,]+)\)")
SECONDS = re.compile(r"done training in ([\d.]+) seconds")
#: Seconds of a run's processes up to a line of its log, which is all that one that was killed told.
WALL = re.compile(r"\| wall ([\d.]+)$", re.MULTILINE)


def read(runs: Path) -> list[dict]:
    """A row for each method: its seeds, scores, trainable parameters, bytes, seconds.

    Raises:
        InputError: there is no finished run, what is there is damaged, or runs were scored in
            different ways.
    """
    methods, first = {}, None
    for path in sorted(runs.glob("*/seed*/scores.json")):
        try:
            run = read_scores(path)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path} is damaged. Remove it, and run its script again.") from None
        first = first or (path, run)
        if metrics_of(run) != metrics_of(first[1]):
            here, there = (in_words(metrics_of(one)) for one in (run, first[1]))
            raise InputError(
                f"{path} has {here}, and {first[0]} has {there}. Score all with the same parts and "
                "--metrics."
            )
        methods.setdefault(path.parent.parent.name, []).append({**run, **cost(path.parent)})
    if not methods:
        raise InputError(f"{runs} has no <method>/seed<k>/scores.json: no run has finished there.")
    order = [name for name in (BASE, FULL) if name in methods]
    order += [name for name in methods if name not in order]
    return [row(name, methods[name]) for name in order]


def read_scores(path: Path) -> dict:
    """``scores`` and ``signatures`` of what ``fairseq-peft score`` has written.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it has not.
    """
    content = json_of(path.read_bytes())
    parts = content["parts"]
    numbers = [number(part, metric) for part in parts.values() for metric in part]
    if not numbers or None in numbers or not all("rows" in part for part in parts.values()):
        raise ValueError
    return {"scores": parts, "signatures": dict(content["signatures"])}


def metrics_of(run: dict) -> dict[str, set]:
    """Part -> the metrics that it was scored by."""
    return {name: set(part) - {"rows"} for name, part in run["scores"].items()}


def in_words(metrics: dict[str, set]) -> str:
    """Such as ``test bleu chrf, old bleu chrf``."""
    return ", ".join(" ".join([name, *sorted(found)]) for name, found in metrics.items())


def cost(run: Path) -> dict:
    """What a run trained, kept and took, as far as its files tell."""
    log = run / "train.log"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    parameters, seconds = PARAMETERS.findall(text), SECONDS.findall(text)
    found = {
        "trainable_parameters": int(parameters[-1].replace(",", "")) if parameters else 0,
        "seconds": max(sum(map(float, seconds)), *map(float, WALL.findall(text)[-1:]), 0.0),
        "kept_bytes": 0,
    }
    for name in ("adapter/adapter.safetensors", "checkpoint_best.pt"):
        if (run / name).is_file():
            found["kept_bytes"] = (run / name).stat().st_size
            break
    return found


def row(method: str, runs: list[dict]) -> dict:
    parts = runs[0]["scores"]
    return {
        "method": method,
        "num_seeds": len(runs),
        **{name: runs[0][name] for name in ("trainable_parameters", "kept_bytes", "signatures")},
        "seconds": statistics.mean(run["seconds"] for run in runs),
        "parts": {
            part: {
                metric: [run["scores"][part][metric] for run in runs]
                for metric in parts[part]
                if metric != "rows"
            }
            for part in parts
        },
    }


def columns(rows: list[dict]) -> tuple:
    """As those of ``report.tables``."""
    parts = list(rows[0]["parts"])
    metrics = list(rows[0]["parts"][parts[0]])
    base = next((one for one in rows if one["method"] == BASE), None)

    def score(part, metric):
        return lambda one: mean_sd(one["parts"][part][metric]) if part in one["parts"] else "-"

    def of_a_run(show):
        return lambda one: show(one) if one["num_seeds"] else "-"

    def forgotten(one):
        if one is base or not one["num_seeds"]:
            return "-"
        lost = mean(base, parts[-1], metrics[0]) - mean(one, parts[-1], metrics[0])
        return f"{lost:+.2f}"

    return (
        ("<method", lambda one: one["method"]),
        ("seeds", of_a_run(lambda one: str(one["num_seeds"]))),
        ("trainable\nparameters", of_a_run(lambda one: f"{one['trainable_parameters']:,}")),
        ("kB\nkept", of_a_run(lambda one: f"{one['kept_bytes'] / 1000:,.0f}")),
        ("seconds", of_a_run(lambda one: f"{one['seconds']:.0f}")),
        *((f"{part}\n{metric}", score(part, metric)) for part in parts for metric in metrics),
        *([(f"{parts[-1]}\nlost", forgotten)] if base and len(parts) > 1 else []),
    )


def mean(one: dict, part: str, metric: str) -> float:
    return statistics.mean(one["parts"][part][metric])


def mean_sd(values: list[float]) -> str:
    found = f"{statistics.mean(values):.2f}"
    return found if len(values) == 1 else f"{found} ± {statistics.stdev(values):.2f}"


def notes(rows: list[dict], command: str) -> list[str]:
    """What one must know to read the table."""
    parts = list(rows[0]["parts"])
    learned, metric = parts[0], list(rows[0]["parts"][parts[0]])[0]
    by_name = {one["method"]: one for one in rows}
    found = ["± is the sample standard deviation over seeds; kB kept: what a run adds to the base."]
    if len(parts) > 1 and BASE in by_name:
        found.append(f"Lost: points of {metric} on {parts[-1]} that the base had.")
    if FULL in by_name:
        differences = [
            f"{name} {mean(one, learned, metric) - mean(by_name[FULL], learned, metric):+.2f}"
            for name, one in by_name.items()
            if name not in (BASE, FULL) and one["num_seeds"]
        ]
        if differences:
            found.append(f"Points of {metric} on {learned} beside full: {', '.join(differences)}.")
    found += [f"{name}: {text}" for name, text in rows[0]["signatures"].items()]
    found.append(f"Machine: {machine()}.")
    return [*found, f"Command: {command}"] if command else found


def machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
    model = re.search(r"^model name\s*: (.*)$", text, re.M)
    return f"{os.cpu_count()} CPUs, {model[1] if model else platform.machine()}"


def read_beside(path: Path, like: dict) -> list[dict]:
    """A row for each system whose texts were scored: a part of ``path`` each.

    Args:
        path: of ``fairseq-peft score --out``.
        like: a row of the runs; its first part is what the systems wrote, too.

    Raises:
        InputError: the file cannot be read, or has other metrics than the runs.
    """
    try:
        systems = json.loads(path.read_bytes())["parts"]
    except OSError as error:
        raise InputError(f"--beside {path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"--beside {path} is no file of fairseq-peft score --out.") from None
    part, wanted = next(iter(like["parts"].items()))
    for name, scores in systems.items():
        if not set(wanted) <= set(scores):
            raise InputError(
                f"--beside {path}: {name} has {', '.join(scores)}. The runs have "
                f"{', '.join(wanted)}: score both with the same --metrics."
            )
    empty = {"num_seeds": 0, "trainable_parameters": 0, "kept_bytes": 0, "seconds": 0.0}
    return [
        {
            **{"method": name, **empty, "signatures": like["signatures"]},
            "parts": {part: {metric: [scores[metric]] for metric in wanted}},
        }
        for name, scores in systems.items()
    ]


def write(runs: Path, command: str = "", beside: Path | None = None) -> str:
    """report.md and report.json in ``runs``; the table as text."""
    rows = read(runs)
    rows += read_beside(beside, rows[0]) if beside else []
    shown, told = columns(rows), notes(rows, command)
    page = tables.markdown_table(shown, rows) + "\n\n" + "".join(f"- {line}\n" for line in told)
    content = json.dumps({"rows": rows, "notes": told}, indent=1) + "\n"
    for name, text in (("report.md", page), ("report.json", content)):
        with whole(runs / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return tables.aligned(shown, rows) + "\n" + "\n".join(told) + "\n"
