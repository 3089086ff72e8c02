"""The figure of merit of each kind of task, for pictures and sentences."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_peft.report import cells
from fairseq_peft.scores import CLASSES, LABELS, NUMBER, TEXT

#: Metric, as files and flags have it -> as it is written; any other is its own name.
WRITTEN = {
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "mcc": "MCC",
    "mse": "MSE",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}


@dataclass(frozen=True)
class Score:
    """The figure of merit of a kind of task.

    Attributes:
        key: of a row, without ``_mean`` and ``_sd``.
        name: in a sentence and on an axis.
        factor: 100 where people read per cent.
        lowest: less is better.
    """

    key: str
    name: str
    factor: int = 100
    lowest: bool = False

    @property
    def unit(self) -> str:
        return " %" if self.factor == 100 else ""

    def mean(self, row: dict) -> float | None:
        """As people read it; None where the runs have none."""
        value = row.get(f"{self.key}_mean")
        return None if value is None else self.factor * value

    def rank(self, row: dict) -> float:
        """More is better, whatever the score."""
        return -self.mean(row) if self.lowest else self.mean(row)

    def spread(self, row: dict) -> float | None:
        value = row.get(f"{self.key}_sd")
        return None if value is None else self.factor * value

    def text(self, row: dict) -> str:
        """Mean ± standard deviation."""
        if self.factor == 100:
            return cells.mean_sd(row, self.key)
        return cells.plain_score(row, self.key)


SCORES = {
    CLASSES: Score("test_accuracy", "test accuracy"),
    LABELS: Score("test_micro_f1", "test micro-F1"),
    NUMBER: Score("test_pearson", "test Pearson correlation", 1),
    TEXT: Score("test_loss", "test loss", 1, lowest=True),
}


def score_of(rows: list[dict]) -> Score:
    """That of the first row's kind: runs on one data set are of one kind."""
    return SCORES.get(rows[0]["kind"], SCORES[CLASSES])
