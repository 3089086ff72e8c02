"""What a run leaves beside its checkpoints: run.json, metrics.jsonl, and TensorBoard's view of
the same numbers."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.files import add_line, is_utf8, json_of, json_text, whole
from fairseq_peft.scores import METRICS

logger = logging.getLogger(__name__)

#: What TensorBoard shows of a split, of whichever kind of task.
SHOWN = ("loss", *sorted({name for names in METRICS.values() for name in names}))
SHOWN = (*SHOWN, "tokens_per_second")


def write_json(path: str, value) -> None:
    """Write ``value`` whole or not at all: see ``files.whole``."""
    with whole(path) as temporary:
        temporary.write_text(json_text(value, indent=1) + "\n", encoding="utf-8")


def read_start(directory: str) -> dict:
    """``init``, ``base`` and what follows from them, of the run.json in ``directory``; {} if there
    is none to read."""
    return _read(directory, ("init", "base", "task_bytes"))


def read_frozen(directory: str) -> dict:
    """``frozen_sha256`` of the run.json in ``directory``; {} if it has none."""
    return _read(directory, ("frozen_sha256",))


def read_knobs(directory: str) -> dict:
    """``peft`` and ``method_config`` of the run.json in ``directory``; {} if there is none."""
    return _read(directory, ("peft", "method_config"))


def _read(directory, keys):
    try:
        with open(os.path.join(directory, "run.json"), encoding="utf-8") as file:
            run = json_of(file.read())
        return {key: run[key] for key in keys}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def read_choice(directory: str) -> dict | None:
    """``chosen_by`` of the run.json in ``directory``; None if it has none."""
    return _read(directory, ("chosen_by",)).get("chosen_by")


def read_lines(directory: str, num_updates: int) -> list[dict]:
    """The lines of metrics.jsonl up to a checkpoint of so many updates, one a validation; none
    where there is no file. A line that is cut off, by a crash, is left out."""
    try:
        content = Path(directory, "metrics.jsonl").read_bytes()
    except OSError:
        return []
    return [line for line in valid_lines(lines_of(content)) if line["num_updates"] <= num_updates]


def lines_of(content: bytes) -> list[dict]:
    """The lines of metrics.jsonl in ``content``; what is none, cut off or damaged, is left out."""
    found = []
    for text in content.split(b"\n"):
        try:
            line = json_of(text)
        except ValueError:
            continue
        if isinstance(line, dict) and _is_line(line):
            found.append(line)
    return found


def _is_line(line):
    """Whether it has what every reader of metrics.jsonl asks for."""
    subsets = line.get("subsets")
    parts = [line.get("train"), *subsets.values()] if isinstance(subsets, dict) else []
    counts = is_count(line.get("epoch")) and is_count(line.get("num_updates"))
    return counts and len(parts) > 1 and all(isinstance(part, dict) for part in parts)


def is_count(value) -> bool:
    """Whether a value read off JSON is one of 1, 2, ..."""
    return type(value) is int and 0 < value < 2**53


def number(part, key: str) -> float | None:
    """``part[key]`` of JSON; None where it is no finite number."""
    value = part.get(key) if isinstance(part, dict) else None
    is_number = type(value) in (int, float) and abs(value) < 2**53  # NaN is not
    return value if is_number else None


def seconds_of(line: dict) -> float:
    """Of an epoch and its validation."""
    return sum(number(part, "seconds") or 0 for part in (line["train"], *line["subsets"].values()))


def valid_lines(lines: list[dict]) -> list[dict]:
    """``lines`` without those that were written again: a run that went on from an earlier
    checkpoint than it had come to repeats its updates, and the last line counts."""
    found = []
    for line in lines:
        while found and found[-1]["num_updates"] >= line["num_updates"]:
            found.pop()
        found.append(line)
    return found


@contextlib.contextmanager
def logging_to(path, mode: str = "a") -> Iterator[None]:
    """What is logged in the block goes to the file ``path`` as well; its folder is made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, mode, encoding="utf-8", errors="backslashreplace")
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def check_writable(directory: str) -> None:
    """Raise InputError where the metrics.jsonl that is there does not take another line."""
    path = os.path.join(directory, "metrics.jsonl")
    if os.path.lexists(path):
        try:
            open(path, "ab").close()
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror}), and each validation adds a line to "
                "it. Give rights there, or another --save-dir."
            ) from error


def peak_memory_bytes() -> int:
    """Largest memory of this process: on the GPU if it used one, else resident. Linux's own figure
    (VmHWM), where there is one: getrusage counts what the process that started it held, too."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError, ValueError):
        (line,) = re.findall(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
        return int(line) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class RunLog:
    """The log of one run, in its save directory (schema: docs/design.md)."""

    def __init__(self, directory: str, run: dict):
        os.makedirs(directory, exist_ok=True)
        self.directory = directory
        self.writer = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._make_writer = SummaryWriter
        except ImportError:
            self._make_writer = None
            logger.warning(
                "tensorboard is not installed, so there will be no event file: metrics.jsonl "
                "holds the same numbers"
            )
        if self._make_writer is not None and not is_utf8(directory):
            self._make_writer = None
            logger.warning(
                "the path of the save directory is not UTF-8, which TensorBoard does not take, so "
                "there will be no event file: metrics.jsonl holds the same numbers"
            )
        write_json(os.path.join(directory, "run.json"), run)

    def epoch(self, record: dict) -> None:
        """Append one line to metrics.jsonl and show its numbers in TensorBoard, where the run has
        come to by then: at its number of updates, as a validation within an epoch has the epoch's
        number, too."""
        add_line(os.path.join(self.directory, "metrics.jsonl"), json.dumps(record))
        shown = {"train": record["train"], **record["subsets"]}
        self._show(shown, record["num_updates"], learning_rate=record["lr"])

    def complete(self, record: dict, subsets: dict) -> None:
        """Write an earlier line again, to which ``subsets`` have been added."""
        path = Path(self.directory, "metrics.jsonl")
        lines = path.read_bytes().splitlines()
        place = max(
            i
            for i, line in enumerate(lines)
            for found in lines_of(line)
            if found["num_updates"] == record["num_updates"]
        )
        lines[place] = json.dumps(record).encode("utf-8")
        with whole(path) as temporary:
            temporary.write_bytes(b"\n".join([*lines, b""]))
        self._show(subsets, record["num_updates"])

    def _show(self, subsets, num_updates, **more):
        """In TensorBoard, if it is there."""
        if self._make_writer is None:
            return
        if self.writer is None:
            self.writer = self._make_writer(self.directory)
        for subset, numbers in subsets.items():
            for name, value in numbers.items():
                if name in SHOWN or name.startswith("f1_"):
                    self.writer.add_scalar(f"{name}/{subset}", value, num_updates)
        for name, value in more.items():
            self.writer.add_scalar(name, value, num_updates)
        self.writer.flush()
