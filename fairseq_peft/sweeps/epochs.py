"""The epochs of a run that trains, read off its metrics.jsonl as they come."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from fairseq_peft.runs import log as run_log
from fairseq_peft.scores import is_share

logger = logging.getLogger(__name__)


class Epochs:
    """What a run has written of its validations since this object was made.

    Args:
        folder: of the run.
        max_epoch: how many there will be; 0: nobody knows.

    Attributes:
        last: the newest line of metrics.jsonl; None before there is one.
    """

    def __init__(self, folder: Path, max_epoch: int):
        self.path = folder / "metrics.jsonl"
        self.max_epoch = max_epoch
        self.last = None
        self._place = self.path.stat().st_size if self.path.exists() else 0

    def new(self) -> list[dict]:
        """The lines that have come since the last call."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._place)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._place += len(whole + newline)
        lines = run_log.lines_of(whole)
        self.last = lines[-1] if lines else self.last
        return lines

    def tell(self) -> None:
        """Log each line that has come."""
        for line in self.new():
            scores = ", ".join(
                f"{name} {self.shown(subset)}" for name, subset in line["subsets"].items()
            )
            logger.info(
                f"epoch {line['epoch']} of {self.max_epoch or '?'}: {scores}, train loss "
                f"{_number(line, 'loss'):.4f}, {_number(line, 'seconds'):.1f} s"
            )

    def shown(self, subset: dict) -> str:
        """What a person reads of a split's scores: the one that chooses in this run."""
        chosen_by = run_log.read_choice(str(self.path.parent))
        chosen = chosen_by.get("metric") if isinstance(chosen_by, dict) else None
        for name in (chosen, "micro_f1", "accuracy", "pearson", "loss"):
            if isinstance(name, str) and isinstance(subset.get(name), float):
                return shown(name, subset[name])
        return ""


def _number(line, key):
    """Of training; NaN where a line does not say it."""
    value = run_log.number(line["train"], key)
    return math.nan if value is None else value


def shown(metric: str, value: float) -> str:
    """A score as a person reads it: ``84.25 %`` is accuracy, other metrics are named."""
    if not is_share(metric):
        return f"{metric} {value:.4f}"
    return f"{'' if metric == 'accuracy' else metric + ' '}{100 * value:.2f} %"
