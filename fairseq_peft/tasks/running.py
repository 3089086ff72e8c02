"""A run while it trains: what its launch decided, and what watches, records and keeps it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fairseq.distributed import utils as distributed_utils

from fairseq_peft.checkpoints import slim
from fairseq_peft.files import remove_leftovers
from fairseq_peft.injection import frozen
from fairseq_peft.runs import log as run_log
from fairseq_peft.runs import plan as plans
from fairseq_peft.runs.choice import Best
from fairseq_peft.tasks import record
from fairseq_peft.tasks.best_adapter import BestAdapter
from fairseq_peft.tasks.predictions import Collector

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """A run between its launch (``launch.py``) and its last epoch; the task hands it its callbacks.

    Attributes:
        save_dir: the folder of its files.
        subsets: names of the evaluated splits, in the order of evaluation.
        best: decides which validation is the best; the same in every process.
        described: the content of run.json, which is written when the first epoch begins.
        plan: that of plan.json, which is written then, too; None where no command line tells it.
        eval_test: ``each`` or ``best``: whether the splits that do not choose are evaluated at each
            validation, or only for the best.
        tests_at_end: with ``best``: they are evaluated once, when training has ended, by
            ``checkpoints/last_test.py``; else at each new best.
        tested: the line of metrics.jsonl for which that goes on; None while training does.
        verify_frozen: whether every validation compares the frozen tensors with the start.
        base_ref: what its checkpoints leave out; None: they hold the whole model.
        best_adapter: keeps SAVE_DIR/adapter; None: nothing is saved, or ``stock.py`` keeps it.
        clock: the seconds that the run has had, counted from any moment.
        guard: the frozen tensors as they were when the first epoch began; None before that, and
            without ``verify_frozen``.
        recorder: writes metrics.jsonl; None before the first epoch, and in every process but the
            first.
        predictions: what the validation that goes on has predicted so far.
        saved_update: the number of updates in the checkpoint that was written last.
    """

    save_dir: str
    subsets: list[str]
    described: dict
    best: Best
    plan: plans.Plan | None = None
    eval_test: str = "each"
    tests_at_end: bool = False
    tested: dict | None = None
    verify_frozen: bool = False
    base_ref: slim.BaseRef | None = None
    best_adapter: BestAdapter | None = None
    clock: Callable[[], float] = time.perf_counter
    guard: frozen.Guard | None = None
    recorder: record.EpochRecorder | None = None
    predictions: Collector = field(default_factory=Collector)
    saved_update: int | None = None

    def begin_epoch(self, epoch: int, model) -> None:
        """Before the first batch of an epoch; ``epoch`` is not 1 where a run goes on."""
        if self.verify_frozen and self.guard is None:
            self._guard_frozen(model)
        self._begin_record()
        if self.recorder:
            self.recorder.begin_epoch(epoch)

    def _begin_record(self):
        """Write what the run is, and open its log; once, in the first process."""
        if self.recorder is None and distributed_utils.get_global_rank() == 0:
            remove_leftovers(self.save_dir, "checkpoint*", "run.json")
            if self.plan:
                os.makedirs(self.save_dir, exist_ok=True)
                plans.write(Path(self.save_dir), self.plan)
            log = run_log.RunLog(self.save_dir, self.described)
            self.recorder = record.EpochRecorder(log, self.clock)

    def _guard_frozen(self, model):
        """Take note of the frozen tensors; on a resumed run, compare them with its beginning.

        Raises:
            RuntimeError: they are others than those that the run began with.
        """
        self.guard = frozen.Guard(model)
        recorded = self.described.get("frozen_sha256")
        if recorded not in (None, self.guard.sha256):
            raise RuntimeError(
                f"{self.guard}, but {self.save_dir}/run.json says that the run began with "
                f"{recorded[:12]}: checkpoint_last.pt holds another base, or frozen tensors were "
                "changed. Start again from the base in another --save-dir."
            )
        self.described["frozen_sha256"] = self.guard.sha256
        if recorded:
            logger.info(f"{self.guard}, as at the first launch")
        elif not model.accepts_base:
            logger.info(f"{self.guard}, compared from here on: the first launch recorded none")
        else:
            logger.info(str(self.guard))

    def begin_validation(self, epoch: int, model) -> None:
        """Before the first split is evaluated.

        Raises:
            RuntimeError: a frozen tensor has changed.
        """
        if self.guard:
            self.guard.check(model)
            logger.info(f"{self.guard}, unchanged after epoch {epoch}")
        self.predictions.begin()
        if self.tested:
            self.predictions.go_on(self.save_dir, self.tested["num_updates"])
        if self.recorder:
            self.recorder.begin_validation()

    def goes_on(self, num_updates: int) -> bool:
        """Whether the validation after so many updates goes on behind the split that chooses."""
        if self.tests_at_end:
            return False
        return self.eval_test == "each" or self.best.update == int(num_updates)

    def begin_test(self) -> list[str]:
        """Training has ended, with ``tests_at_end``: the splits that its best validation lacks, to
        be evaluated with the weights of that moment."""
        lines = run_log.read_lines(self.save_dir, 2**62)
        line = next((line for line in lines if line["num_updates"] == self.best.update), None)
        missing = [name for name in self.subsets if line and name not in line["subsets"]]
        if missing:
            self.tested = line
            self._begin_record()  # where training had ended before
        return missing

    def end_subset(self, split: str, result: dict, num_updates: int, model) -> None:
        """After a split was evaluated, of which the first chooses; after the last one, the line and
        the predictions are written, and, at a new best, the adapter folder."""
        if split == self.best.choice.subset:
            self.best.offer(self.best.choice.value({split: result}), int(num_updates))
        if self.recorder is None:
            return
        done = split == self.subsets[-1] or not (self.tested or self.goes_on(num_updates))
        line = self.recorder.end_subset(split, result, num_updates, done, self.tested)
        if line:
            if self.predictions.found.predicted:  # texts are no answers to compare
                self.predictions.write(self.save_dir, line["epoch"], line["num_updates"])
            if self.best_adapter:
                self.best_adapter.offer(model, line)
