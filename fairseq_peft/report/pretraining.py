"""The loss curve of a masked-LM training: from fairseq's logs to pretrain.jsonl, and back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.files import json_of, whole

# `... | INFO | train_inner | {"loss": ...}`; fairseq writes numbers as strings and losses in bits.
STATS = re.compile(r"\| (train_inner|valid) \| (\{.*\})\s*$")
PROCESS_START = "| Preparing to load checkpoint"


def read_logs(phases: Iterable[tuple[int, Path]]) -> list[dict]:
    """One row for each update that was logged or validated, over the logs of all phases in order.

    ``phases`` holds (tokens a sample, log written with ``--log-format json``). ``num_tokens`` and
    ``seconds`` are totals; updates trained again after a restart count once, their seconds twice.
    """
    rows = []
    num_updates = num_tokens = seconds = 0
    for phase, (tokens_per_sample, path) in enumerate(phases, start=1):
        found: dict[int, dict] = {}
        earlier = seconds
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if PROCESS_START in line:
                earlier = seconds
            match = STATS.search(line)
            if not match:
                continue
            stats = json.loads(match[2])
            prefix = "valid_" if match[1] == "valid" else ""
            row = found.setdefault(int(stats[f"{prefix}num_updates"]), {})
            if prefix:
                row["valid_loss"] = round(float(stats["valid_loss"]) * math.log(2), 4)
            else:
                seconds = earlier + float(stats["wall"])
                row["train_loss"] = round(float(stats["loss"]) * math.log(2), 4)
                row["tokens_per_update"] = float(stats["wpb"])
            row["seconds"] = seconds
        rates = [row["tokens_per_update"] for row in found.values() if "tokens_per_update" in row]
        for number, row in sorted(found.items()):
            rate = row.get("tokens_per_update", rates[-1] if rates else 0)
            num_tokens += rate * (number - num_updates)
            num_updates = number
            rows.append(
                {
                    "phase": phase,
                    "tokens_per_sample": tokens_per_sample,
                    "num_updates": number,
                    "num_tokens": round(num_tokens),
                    "seconds": row["seconds"],
                    "train_loss": row.get("train_loss"),
                    "valid_loss": row.get("valid_loss"),
                }
            )
    return rows


def write_curve(rows: list[dict], path: Path) -> None:
    """One JSON object a line, under a temporary name until it is whole."""
    with whole(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_curve(path: Path) -> list[dict]:
    """The rows of a pretrain.jsonl.

    Raises:
        InputError: the file is missing, empty or something else.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist. Expected the pretrain.jsonl of pretrain.sh.")
    try:
        rows = [json_of(line) for line in path.read_text(encoding="utf-8").splitlines()]
        usable = bool(rows) and all(isinstance(row["num_updates"], int) for row in rows)
    except (ValueError, KeyError, TypeError):
        usable = False
    if not usable:
        raise InputError(
            f"{path} is no pretrain.jsonl. Expected lines with num_updates and losses."
        )
    return rows


def points(rows: list[dict], field: str) -> tuple[list[int], list[float]]:
    """Updates and values of the rows that have ``field``."""
    have = [row for row in rows if row.get(field) is not None]
    return [row["num_updates"] for row in have], [row[field] for row in have]
