"""Which validation of a run is its best: one decision, told by its update.

checkpoint_best.pt, SAVE_DIR/adapter, predictions.npz, result.json and the report follow it. A run
asks ``Best`` while it trains; who reads its metrics.jsonl afterwards asks ``Choice.best_of``, and
hears the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from fairseq_peft.errors import InputError
from fairseq_peft.scores import CLASSES, LOWEST, METRICS, NUMBER, has_accuracy

#: Beside the metrics of the kind of task (``scores.METRICS``) there are the loss and this of a
#: class.
F1 = "f1_"
#: Decimals that fairseq keeps of a metric: validations that differ beyond them are equal.
DECIMALS = 6


@dataclass(frozen=True)
class Choice:
    """What chooses: the best ``metric`` of ``subset``, the latest on ties.

    Attributes:
        metric: one of ``scores.METRICS``, ``loss``, or ``f1_<class>``.
        subset: name of the split that chooses; never the test set.
    """

    metric: str = "accuracy"
    subset: str = "valid"

    @property
    def maximize(self) -> bool:
        """Whether more is better."""
        return self.metric not in LOWEST

    @property
    def f1_class(self) -> str | None:
        """The class whose F1 chooses; None where something else does."""
        return self.metric[len(F1) :] if self.metric.startswith(F1) else None

    def __str__(self) -> str:
        return f"{'highest' if self.maximize else 'lowest'} {self.metric} on {self.subset}"

    def described(self) -> dict:
        """As run.json has it."""
        return {**asdict(self), "maximize": self.maximize}

    @classmethod
    def of_run(cls, run: dict) -> Choice:
        """Of the content of a run.json; a run of an earlier version was chosen by accuracy."""
        found = run.get("chosen_by") or {}
        return cls(**{key: found[key] for key in ("metric", "subset") if key in found})

    def value(self, subsets: dict) -> float:
        """What decides of a validation's ``subsets``, a line's entry of metrics.jsonl."""
        return round(float(subsets[self.subset][self.metric]), DECIMALS)

    def as_good(self, value: float, best: float | None) -> bool:
        """Whether ``value`` takes the place of ``best``, which came before it. NaN never does."""
        if math.isnan(value):
            return False
        return best is None or (value >= best if self.maximize else value <= best)

    def best_of(self, lines: Iterable[dict]) -> dict | None:
        """The best line of metrics.jsonl; None where there is none."""
        best, found = None, None
        for line in lines:
            value = self.value(line["subsets"])
            if self.as_good(value, best):
                best, found = value, line
        return found


def choice(
    metric: str,
    maximize: bool,
    subsets: Sequence[str],
    labels: Sequence[str],
    kind: str = CLASSES,
) -> Choice:
    """What fairseq's flags say that chooses: ``--best-checkpoint-metric``, its direction, and the
    first split of ``--valid-subset``.

    Raises:
        InputError: they contradict each other, the metric is unknown, or the test set would choose.
    """
    chosen = Choice(metric, subsets[0])
    known = dict.fromkeys((*METRICS[kind], "loss"))
    if metric not in known and (not labels or kind == NUMBER or chosen.f1_class not in labels):
        expected = ", ".join(known)
        if has_accuracy(kind):
            expected += f" or {F1}<class> ({', '.join(F1 + name for name in labels)})"
        usual = "macro_f1" if has_accuracy(kind) else METRICS[kind][0]
        direction = " --maximize-best-checkpoint-metric" if Choice(usual).maximize else ""
        raise InputError(
            f"--best-checkpoint-metric {metric} is unknown; expected {expected}. Give one, such as "
            f"--best-checkpoint-metric {usual}{direction}."
        )
    if chosen.maximize and not maximize:
        raise InputError(
            f"--best-checkpoint-metric {metric} without --maximize-best-checkpoint-metric would "
            f"keep the worst epoch. Give --best-checkpoint-metric {metric} "
            "--maximize-best-checkpoint-metric."
        )
    if maximize and not chosen.maximize:
        usual = next(name for name in METRICS[kind] if name not in LOWEST)
        raise InputError(
            f"--maximize-best-checkpoint-metric would keep the epoch of the highest {metric}. Give "
            f"--best-checkpoint-metric {usual} --maximize-best-checkpoint-metric, or "
            "leave both out for the lowest loss."
        )
    if subsets[0].startswith("test"):
        others = [name for name in subsets if not name.startswith("test")] or ["valid"]
        names = ",".join([*others, *(name for name in subsets if name not in others)])
        raise InputError(
            f"--valid-subset {','.join(subsets)}: its first split chooses the checkpoint, and a "
            f"test set never does. Give --valid-subset {names}."
        )
    return chosen


class Best:
    """The best validation so far of a run that trains.

    Attributes:
        choice: what chooses.
        value: of the best validation; None before there is one.
        update: the number of updates that it came after.
        waited: validations in a row that have not been better (``--patience``).
        offered: (value, update) of every validation.
    """

    def __init__(self, choice: Choice, lines: Iterable[dict] = ()):
        """``lines`` of metrics.jsonl are those before the checkpoint that a run goes on from."""
        self.choice = choice
        self.value = self.update = None
        self.waited = 0
        self.offered = []
        for line in lines:
            self.offer(choice.value(line["subsets"]), line["num_updates"])

    def offer(self, value: float, update: int) -> bool:
        """Whether the validation after ``update`` updates is the best so far."""
        self.offered.append((value, update))
        better = self.value is None or value != self.value
        chosen = self.choice.as_good(value, self.value)
        self.waited = 0 if chosen and better else self.waited + 1
        if chosen:
            self.value, self.update = value, update
        return chosen

    def best_updates(self, number: int) -> list[int]:
        """Where the best validations so far are, the best first, the latest on ties."""
        sign = 1 if self.choice.maximize else -1
        ranked = sorted(((sign * v, u) for v, u in self.offered if not math.isnan(v)), reverse=True)
        return [update for _, update in ranked[:number]]
