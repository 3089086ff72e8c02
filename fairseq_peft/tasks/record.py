"""What a run records: what it is, before it starts, and one line a validation."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict

import fairseq
import torch
from fairseq.logging import metrics

from fairseq_peft import __version__, methods, scores
from fairseq_peft.checkpoints import file as checkpoint_file
from fairseq_peft.errors import InputError
from fairseq_peft.injection import counting
from fairseq_peft.models import folder
from fairseq_peft.models.roberta import HEADS
from fairseq_peft.runs import log as run_log

#: Flags of models, of Hugging Face's only the last: the others are in their folder.
DROPOUTS = ("dropout", "attention_dropout", "frozen_dropout")
#: Knobs of methods that change what trained tensors compute, and not their shapes.
FUNCTION = {
    *("alpha", "alpha_pattern", "rslora", "scaling", "activation", "style", "placement"),
    *("positions", "feedforward"),
}


def describe_run(cfg, model, start, labels, kind, datasets, choice) -> dict:
    """The content of run.json (schema: docs/design.md).

    Args:
        cfg: the task's config.
        model: with its head and its method.
        start: where training starts from (``data.checks.start``).
        labels: class names in the order of the outputs.
        kind: of the task (``scores``).
        datasets: split -> data set.
        choice: what chooses the best validation (``runs.choice.Choice``).
    """
    counts = counting.count(model, HEADS)
    run = {
        "schema": 1,
        "data": os.path.basename(os.path.abspath(cfg.data)),
        "init": "pretrained" if start.base else "scratch",
        "method": cfg.method_label or model.setting.name,
        "peft": model.setting.name,
        "seed": cfg.seed,
        "arch": model.args._name,
        "base": start.base,
        "method_config": model.setting.knobs(),
        "labels": list(labels),
        "kind": kind,
        "chosen_by": choice.described(),
        "validated": {
            "every_epochs": cfg.validate_interval,
            "after_updates": cfg.validate_after_updates,
            "test": cfg.eval_test,
        },
        "rows": {split: len(dataset) for split, dataset in datasets.items()},
        "trainable_parameters": counts.trainable,
        "method_parameters": counts.method,
        "head_parameters": counts.head,
        "total_parameters": counts.total,
        "task_bytes": folder.num_bytes(model, from_scratch=start.base is None),
        "hyperparameters": {
            "lr": cfg.lr[0],
            "batch_size": cfg.batch_size,
            "max_tokens": cfg.max_tokens,
            "max_epoch": cfg.max_epoch,
            "update_freq": cfg.update_freq[0],
            "precision": model.args.precision,
            **{name: getattr(model.args, name) for name in DROPOUTS if hasattr(model.args, name)},
        },
        "versions": versions(),
        "device": "cuda" if torch.cuda.is_available() and not cfg.cpu else "cpu",
        "threads": torch.get_num_threads(),
        "command": " ".join(sys.argv),
    }
    if start.resumes:
        run.update(run_log.read_frozen(cfg.save_dir))
    if start.resumes and start.base is None:
        # The first launch knew what the run started from; this one was not told.
        run.update(run_log.read_start(cfg.save_dir))
    return run


def check_same_knobs(save_dir: str, described: dict) -> None:
    """Raise InputError where a run goes on with other knobs than it began with.

    Most change no shape (``--lora-alpha``), so a checkpoint loads all the same, and the rest of the
    run would be of another method.

    Args:
        save_dir: has the run.json of the first launch.
        described: the content of this launch's.
    """
    begun = run_log.read_knobs(save_dir)
    if not begun or begun["peft"] != described["peft"]:
        return  # another method has other tensors: the checkpoint does not load
    now = json.loads(json.dumps(described["method_config"]))
    differ = knob_differences(begun["method_config"], now)
    if differ:
        raise InputError(
            f"{save_dir} was begun with {described['peft']} and {_sentence(differ, 0)}, and would "
            f"go on with {_sentence(differ, 1)}. Go on as it was begun, or start another run in "
            "another --save-dir."
        )


def check_start_knobs(path: str, state: dict, model) -> None:
    """Raise InputError where a new run starts from what a method has learnt in ``path``, and its
    knobs would let that compute something else."""
    told = methods.told(checkpoint_file.told(state))
    if told is None:
        return  # a base
    before = {method.name: asdict(method.config) for method in told}
    now = {method.name: asdict(method.config) for method in model.setting}
    differ = {
        name: pair
        for name, pair in knob_differences(before, now).items()
        if name.split(".")[1] in FUNCTION
    }
    if differ:
        raise InputError(
            f"{path} was trained with {_sentence(differ, 0)}; with {_sentence(differ, 1)} the same "
            "tensors compute something else. Give the knobs that it was trained with, or start "
            "from its base."
        )


def knob_differences(before: dict, now: dict) -> dict:
    """Knob -> (before, now), of the knobs that both have with different values; those of one of
    several methods are called ``lora.alpha``."""
    differ = {}
    for name in before.keys() & now.keys():
        old, new = before[name], now[name]
        if isinstance(old, dict) and isinstance(new, dict):
            found = knob_differences(old, new)
            differ.update({f"{name}.{knob}": pair for knob, pair in found.items()})
        elif old != new:
            differ[name] = (old, new)
    return dict(sorted(differ.items()))


def _sentence(differ, place):
    return ", ".join(f"{name} = {pair[place]}" for name, pair in differ.items())


def versions() -> dict:
    """Versions of what a result depends on."""
    return {"fairseq_peft": __version__, "torch": torch.__version__, "fairseq": fairseq.__version__}


class EpochRecorder:
    """Times training and validation apart and writes a line after the last subset of a validation.

    Args:
        log: the run's log.
        clock: the seconds that the run has had, counted from any moment.
    """

    def __init__(self, log: run_log.RunLog, clock: Callable[[], float]):
        self.log = log
        self.clock = clock
        # Of the epoch that runs.
        self.epoch = None
        self.start = None
        self.validation_seconds = 0.0
        self.num_earlier_tokens = 0
        self.has_line = True
        # Of earlier epochs that had no validation (--validate-interval), since the last line.
        self.unvalidated_seconds = 0.0
        # Of the validation that runs.
        self.validation_start = None
        self.subset_start = None
        self.results = {}

    def begin_epoch(self, epoch: int) -> None:
        if not self.has_line:
            self.unvalidated_seconds += self.clock() - self.start
        self.has_line = False
        self.epoch = epoch
        self.start = self.clock()
        self.validation_seconds = 0.0
        # A run that goes on in mid-epoch has the counts of its first part, but not its seconds.
        meters = metrics.get_meters("train") or {}
        self.num_earlier_tokens = round(meters["_tokens"].sum) if "_tokens" in meters else 0

    def begin_validation(self) -> None:
        self.subset_start = self.validation_start = self.clock()
        self.results = {}

    def end_subset(
        self, split: str, result: dict, num_updates, done: bool, earlier: dict | None = None
    ) -> dict | None:
        """Take note of a subset's scores; when the validation is done, write its line and return
        it: a new one, or ``earlier``, which lacked these subsets."""
        now = self.clock()
        self.results[split] = {**result, "seconds": now - self.subset_start}
        self.subset_start = now
        if not done:
            return None
        if earlier:
            line = {**earlier, "subsets": {**earlier["subsets"], **self.results}}
            self.log.complete(line, self.results)
            return line
        self.validation_seconds += now - self.validation_start
        line = self._line(now, int(num_updates))
        self.log.epoch(line)
        return line

    def _line(self, now, num_updates) -> dict:
        train = metrics.get_meters("train")
        result = scores.from_meters(train)
        result.pop("predicted", None)
        seconds = now - self.start - self.validation_seconds
        num_tokens = round(train["_tokens"].sum)
        self.has_line = True
        earlier, self.unvalidated_seconds = self.unvalidated_seconds, 0.0
        return {
            "epoch": self.epoch,
            "num_updates": num_updates,
            "lr": metrics.get_smoothed_value("train", "lr"),
            "peak_memory_bytes": run_log.peak_memory_bytes(),
            "train": {
                "loss": float(train["loss"].avg),
                **result,
                "num_tokens": num_tokens,
                "seconds": seconds,
                "tokens_per_second": (num_tokens - self.num_earlier_tokens) / seconds,
            },
            "subsets": dict(self.results),
            **({"unvalidated_seconds": earlier} if earlier else {}),
        }
