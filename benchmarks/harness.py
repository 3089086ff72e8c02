"""What the benchmarks share: contestants that take turns, ratios within a repeat, tables, files.

A benchmark of its own says what it compares. Its contestants are small dataclasses with a ``name``
and a ``software``; each is measured by a process of its own, which prints what it found as a line
of JSON. All run once, then all run again, and so on: what disturbs the machine for a while disturbs
all of them, and a ratio is taken within one repeat.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT)]

from fairseq_peft.errors import InputError, install_excepthook  # noqa: E402
from fairseq_peft.files import whole  # noqa: E402

#: What ``size_flags`` reads, with the defaults of roberta_small: name -> default.
SIZES = {"layers": 4, "embed_dim": 512, "ffn_dim": 512, "heads": 8, "max_positions": 256}


class Failed(Exception):
    """A process failed; the text is a sentence."""


# Flags


def parser(doc: str, only: str, repeats: int = 3, sizes: bool = True) -> argparse.ArgumentParser:
    """The flags that every benchmark with contestants has.

    Args:
        doc: the program's docstring: its first line, and all behind its second paragraph.
        only: an example of what --only takes.
        repeats: how often each contestant runs, by default.
        sizes: whether the model's are flags, too.
    """
    text = doc.split("\n\n")
    flags = argparse.ArgumentParser(
        description=text[0],
        epilog="\n\n".join(text[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = flags.add_argument
    add("--out", type=Path, default=ROOT / "runs" / "benchmark", help="folder for the results")
    help = f"times that every contestant runs ({repeats})"
    add("--repeats", type=int, default=repeats, help=help)
    add("--threads", type=int, default=os.cpu_count(), help="threads of each process (all)")
    add("--only", default="", help=f"names or patterns with commas between, e.g. '{only}'")
    add("--list", action="store_true", help="name the contestants and end")
    for name, default in SIZES.items() if sizes else ():
        add(f"--{name.replace('_', '-')}", type=int, default=default)
    return flags


def check_positive(args, *names: str) -> None:
    """Refuse a flag below 1."""
    for name in names:
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: give 1 or more.")


def model_sizes(args, vocab: int, classes: int, dropout: float) -> dict:
    """The sizes of the model that all contestants have."""
    found = {name: getattr(args, name) for name in SIZES}
    return {**found, "vocab": vocab, "classes": classes, "dropout": dropout}


def size_flags(sizes: dict) -> list[str]:
    return [
        *("--encoder-layers", str(sizes["layers"])),
        *("--encoder-embed-dim", str(sizes["embed_dim"])),
        *("--encoder-ffn-embed-dim", str(sizes["ffn_dim"])),
        *("--encoder-attention-heads", str(sizes["heads"])),
        *("--max-positions", str(sizes["max_positions"])),
        *("--dropout", str(sizes["dropout"]), "--attention-dropout", str(sizes["dropout"])),
        *("--activation-dropout", "0", "--pooler-dropout", "0"),
    ]


# Contestants


def choose(found: list, only: str) -> list:
    """Those whose name fits one of the patterns (with commas between); all without patterns."""
    patterns = [pattern for pattern in only.split(",") if pattern]
    for pattern in patterns:
        if not any(fnmatch.fnmatch(one.name, pattern) for one in found):
            names = ", ".join(one.name for one in found)
            raise InputError(f"--only {pattern!r} fits no contestant. There are: {names}.")
    return [
        one
        for one in found
        if not patterns or any(fnmatch.fnmatch(one.name, pattern) for pattern in patterns)
    ]


def find_hf_python() -> tuple[str | None, str]:
    """The Python with transformers and PEFT, and why there is none."""
    path = os.environ.get("FAIRSEQ_PEFT_PEFT_PYTHON") or str(ROOT / ".venv-peft/bin/python")
    if not os.access(path, os.X_OK):
        return None, f"{path} does not exist"
    probe = "import accelerate, importlib.util as u; assert u.find_spec('transformers')"
    probe += " and u.find_spec('peft')"
    if subprocess.run([path, "-c", probe], capture_output=True).returncode:
        return None, f"{path} lacks transformers, peft or accelerate"
    return path, ""


def leave_out_hf(chosen: list) -> tuple[list, str | None, list[str]]:
    """Without Hugging Face's contestants where there is no Python for them.

    Returns:
        Those that can run, the Python of Hugging Face's, and a line for what was left out.

    Raises:
        InputError: nothing is left.
    """
    if not any(one.software.startswith("hf") for one in chosen):
        return chosen, None, []
    hf, reason = find_hf_python()
    if hf is not None:
        return chosen, hf, []
    left_out = [f"hf-*: {reason}. bash scripts/test.sh parity makes it."]
    chosen = [one for one in chosen if not one.software.startswith("hf")]
    if not chosen:
        raise InputError(f"Nothing is left to measure. {left_out[0]}")
    return chosen, None, left_out


def take_turns(contestants, repeats: int, measure, before=None, told=None):
    """Measure every contestant once, then every one again, ``repeats`` times.

    One that failed is not asked again; why it failed is told at once, on stderr.

    Args:
        contestants: things with a ``name``, or name -> what ``measure`` is given.
        measure: (contestant, repeat from 1) -> dict, or raises ``Failed``.
        before: called with the number of each repeat, before its first contestant.
        told: a line about one measurement, for stderr: (name, what ``measure`` found) -> text.

    Returns:
        name -> repeat -> what ``measure`` found; name -> why it failed.
    """
    if not isinstance(contestants, dict):
        contestants = {one.name: one for one in contestants}
    program = Path(sys.argv[0]).name
    runs, failures = {}, {}
    for repeat in range(1, repeats + 1):
        if before:
            before(repeat)
        for name, contestant in contestants.items():
            if name in failures:
                continue
            try:
                found = measure(contestant, repeat)
            except Failed as error:
                words = name if isinstance(name, str) else ", ".join(map(str, name))
                failures[name] = f"{words} {error}"
                print(f"{program}: {failures[name]}", file=sys.stderr, flush=True)
                continue
            runs.setdefault(name, {})[repeat] = found
            if told:
                print(f"repeat {repeat}: {told(name, found)}", file=sys.stderr, flush=True)
    return runs, failures


# Processes


def start(words: list[str], log: Path, threads: int, timed: bool = False, given: str = "") -> str:
    """Run a process to its end; its output goes to ``log``.

    Args:
        timed: tell it when it was started (behind the name of its script).
        given: its stdin.

    Returns:
        The last line of its stdout.

    Raises:
        Failed: with a sentence.
    """
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    env["HF_HUB_OFFLINE"] = "1"
    log.parent.mkdir(parents=True, exist_ok=True)
    if timed:
        words = [*words[:2], "--started", repr(time.time()), *words[2:]]
    done = subprocess.run(words, cwd=ROOT, env=env, input=given, capture_output=True, text=True)
    log.write_text(f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}", encoding="utf-8")
    if done.returncode:
        reason = reason_of(done.stderr)
        raise Failed(f"failed with status {done.returncode}: {reason} (log: {log})")
    return (done.stdout.strip().splitlines() or [""])[-1]


def reason_of(stderr: str) -> str:
    """The line that says what went wrong: the last that names an error, else the last."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["no message"]
    return ([line for line in lines if re.search(r"[Ee]rror: ", line)] or lines)[-1]


def measured(words: list[str], log: Path, threads: int, given=None) -> dict:
    """Run a contestant's process; what it is given on stdin, and what it found, are JSON.

    Raises:
        Failed: with a sentence.
    """
    line = start(words, log, threads, timed=True, given="" if given is None else json.dumps(given))
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        raise Failed(f"ended without saying what it measured (log: {log})") from None


def call(words: list, environ: dict, given: str = "") -> str:
    """Run a command that must succeed; returns its stdout.

    Raises:
        SystemExit: it failed; with the end of its output.
    """
    words = [str(word) for word in words]
    done = subprocess.run(words, env=environ, input=given, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"failed: {shlex.join(words)}\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


# Figures


def spread(values: list[float]) -> dict | None:
    """Median, lowest and highest; None of nothing."""
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(mine: dict, others: dict) -> dict | None:
    """Spread of ``mine`` over ``others`` (repeat -> speed), repeat by repeat."""
    return spread([mine[k] / others[k] for k in sorted(mine) if k in others])


def listed(mine: dict, without: tuple = ()) -> list[dict]:
    """What a contestant's processes measured, for the file: one entry a repeat."""
    return [
        {"repeat": repeat, **{k: v for k, v in mine[repeat].items() if k not in without}}
        for repeat in sorted(mine)
    ]


# Output


def range_of(values: dict | None, digits: int = 0, scale: float = 1, bare: bool = False) -> str:
    """``median (min-max)``, the range only where there is one."""
    if values is None:
        return "-"
    middle, low, high = (f"{scale * values[key]:,.{digits}f}" for key in ("median", "min", "max"))
    return middle if bare or low == high else f"{middle} ({low}-{high})"


def table(header: list[str], lines: list[list[str]], words: int = 1) -> str:
    """A Markdown table, aligned to be read as it is: the first ``words`` columns left."""
    columns = range(len(header))
    widths = [max(len(line[i]) for line in [header, *lines]) for i in columns]

    def draw(line):
        cells = [
            line[i].ljust(widths[i]) if i < words else line[i].rjust(widths[i]) for i in columns
        ]
        return f"| {' | '.join(cells)} |"

    rule = "|".join("-" * (widths[i] + 1) + ("-" if i < words else ":") for i in columns)
    return "\n".join([draw(header), f"|{rule}|", *map(draw, lines)])


def about(args, names: tuple, sizes: dict, load: float) -> dict:
    """What stands at the top of a result: its form, when, with which flags, on which machine.

    Args:
        names: the flags that are named.
        load: the machine's load before the start.
    """
    return {
        "schema": 1,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "settings": {**{name: getattr(args, name) for name in names}, "model": sizes},
        "machine": {
            "platform": platform.platform(),
            "processor": processor(),
            "python": platform.python_version(),
            "load_before": load,
        },
    }


def processor() -> str:
    """The CPU's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine_sentence(result: dict) -> str:
    machine = result["machine"]
    return f"{machine['processor']}; load before the start {machine['load_before']:.1f}."


def write_json(path: Path, content) -> None:
    """Write a result whole, or not at all; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        Path(temporary).write_text(
            json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8"
        )


def tell_failures(failures: list[str]) -> int:
    """Print the failures at the end; returns the exit status."""
    for failure in failures:
        print(f"{Path(sys.argv[0]).name}: error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def run_main(main) -> None:
    """Run a program: what a user got wrong is a sentence, not a traceback."""
    install_excepthook(Path(sys.argv[0]).name)
    sys.exit(main())
