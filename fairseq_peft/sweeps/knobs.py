"""The knobs of a run, and the command line of fairseq-train that they mean."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from fairseq_peft import precision
from fairseq_peft.errors import InputError
from fairseq_peft.runs import plan
from fairseq_peft.runs.choice import Choice
from fairseq_peft.scores import METRICS
from fairseq_peft.sweeps.bases import base_of

PACKAGE = Path(__file__).resolve().parents[1]
#: Schedules that do not know how long the run will be: going on is as if it had never stopped.
ENDLESS = ("fixed", "inverse_sqrt")


@dataclass
class Knobs:
    """The knobs of a run, as ``fairseq-peft finetune`` has them.

    Attributes:
        data: folder that ``prepare-data`` made, or with train.jsonl and so on (``text.pairs``).
        runs: where runs land.
        method: a method, or several with + between.
        label: what the run is called in reports; its folder.
        base: checkpoint, or folder of Hugging Face's, to start from; None: from scratch.
        size: roberta_small, roberta_base or roberta_large; auto: the base's, and from scratch
            roberta_small.
        warmup: per cent of the updates.
        arch_args: more flags of the architecture.
        flags: more flags of fairseq-train.
        metric: what chooses the checkpoint; empty: the usual one of what the data has
            (``scores.METRICS``).
        eval_test: each, or best: the splits behind the first once, with the best weights.
        patience: validations without a better one after which training ends; 0: never.
        class_weights: none, balanced, or numbers with commas.
        keep: checkpoints to keep when done: best or none.
        worker: where a worker listens; None: a process of its own.
        labels: the answers that there are, of a model of Hugging Face's; empty: any text.
    """

    data: str
    runs: str
    method: str
    label: str
    base: str | None
    size: str
    seed: int
    lr: str
    epochs: int
    batch_size: int
    warmup: float
    precision: str
    subsets: str
    threads: int
    arch_args: list
    flags: list
    metric: str = ""
    eval_test: str = "each"
    patience: int = 0
    class_weights: str = "none"
    keep: str = "best"
    worker: str | None = None
    labels: str = ""

    def __post_init__(self):
        if self.label:  # a sweep's own have none: those of its runs are made of them
            check_label(self.label)

    @property
    def data_name(self) -> str:
        """What the data are called in reports: their folder."""
        return os.path.basename(os.path.abspath(self.data))

    @property
    def folder(self) -> Path:
        init = "pretrained" if self.base else "scratch"
        return Path(self.runs) / self.data_name / init / self.label / f"seed{self.seed}"


def check_label(label: str) -> None:
    """Raise InputError where ``label`` cannot be the name of a folder and of a row of a table."""
    if label in (".", "..") or "/" in label or os.sep in label or not label.isprintable():
        raise InputError(
            f"{label!r} cannot be what a run is called in reports, for its folder has that name. "
            "Give one line without /, other than . and .. (--label; in a sweep what stands behind "
            "the / of a cell)."
        )


def command(knobs: Knobs) -> list[str]:
    """The words of fairseq-train, behind the program, with the schedule of what really runs.

    Raises:
        InputError: there is no such data, or a flag that cannot be read.
    """
    found, _ = plan.parse(_words(knobs, []))
    updates = plan.num_updates(found, batches(knobs, found))
    schedule = []
    if found.scheduler in ("polynomial_decay", *ENDLESS):
        schedule = ["--warmup-updates", str(plan.warmup_updates(updates, knobs.warmup))]
    if found.scheduler == "polynomial_decay":
        schedule += ["--total-num-update", str(updates)]
    return [knobs.data, *_words(knobs, schedule)]


def _words(knobs, schedule):
    return [
        *("--user-dir", str(PACKAGE), *base_of(knobs).words()),
        *("--optimizer", "peft_adamw", "--lr", knobs.lr, "--lr-scheduler", "polynomial_decay"),
        *(*schedule, "--clip-norm", "1.0"),
        *("--max-epoch", str(knobs.epochs), "--batch-size", str(knobs.batch_size)),
        *("--seed", str(knobs.seed), "--precision", precision.resolve(knobs.precision)),
        *("--valid-subset", knobs.subsets),
        *_choosing(knobs),
        *_epoch_checkpoints(knobs),
        *("--save-dir", str(knobs.folder), "--num-workers", "0"),
        *("--log-format", "simple", "--log-interval", "50", *knobs.arch_args, *knobs.flags),
    ]


def _epoch_checkpoints(knobs):
    """None of each epoch, unless somebody asks for the last ones (``fairseq-peft average``)."""
    asked = any(flag.startswith("--keep-last-epochs") for flag in knobs.flags)
    return [] if asked else ["--no-epoch-checkpoints"]


def _choosing(knobs):
    """What chooses the checkpoint and ends the run, and what classes weigh."""
    words = []
    if any(flag.startswith("--best-checkpoint-metric") for flag in knobs.flags):
        if knobs.metric:
            raise InputError(
                f"The metric {knobs.metric} (METRIC) would be ignored beside "
                "--best-checkpoint-metric. Leave one out."
            )
    else:
        metric = knobs.metric or METRICS[base_of(knobs).kind][0]
        words += ["--best-checkpoint-metric", metric]
        if Choice(metric).maximize and "--maximize-best-checkpoint-metric" not in knobs.flags:
            words += ["--maximize-best-checkpoint-metric"]
    if knobs.eval_test != "each":
        words += ["--eval-test", knobs.eval_test]
    if knobs.patience:
        words += ["--patience", str(knobs.patience)]
    if knobs.class_weights != "none":
        words += ["--class-weights", knobs.class_weights]
    return words


def batches(knobs: Knobs, found) -> list[int]:
    """Batches that each epoch of a run has in one of its processes; one entry if all have as many.

    Args:
        found: the flags (``plan.parse``).

    Raises:
        InputError: the data is missing.
    """
    if found.max_tokens:
        any_end = ["--total-num-update", "1"] if found.scheduler == "polynomial_decay" else []
        each = _batches_by_tokens([knobs.data, *_words(knobs, any_end)])
    else:  # every batch but the last one is full: ``data.buckets``
        split, examples = _train_rows(knobs.flags)
        rows = base_of(knobs).num_rows(split)
        each = [-(-(min(rows, examples) or rows) // found.batch_size)]
    return [-(-number // found.world_size) for number in each]


def _train_rows(flags) -> tuple[str, int]:
    """``--train-subset`` and ``--train-examples`` among ``flags``; 0 if that is not there."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--train-subset", default="train")
    parser.add_argument("--train-examples", type=int, default=0)
    found = parser.parse_known_args(flags)[0]
    return found.train_subset, max(found.train_examples, 0)


def _batches_by_tokens(words):
    """Where tokens limit a batch, the rows decide how many there are, and classifiers' differ from
    epoch to epoch: the task makes them as it will in the run."""
    from fairseq import options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    cfg = convert_namespace_to_omegaconf(
        options.parse_args_and_arch(options.get_training_parser(), input_args=words)
    )
    task = tasks.setup_task(cfg.task)
    build = getattr(task, "build_classifier", task.build_model)
    build(cfg.model)  # says how long a row may be
    dataset = task.load_dataset(cfg.dataset.train_subset)
    limits = {"max_tokens": cfg.dataset.max_tokens, "max_sentences": cfg.dataset.batch_size}
    iterator = task.get_batch_iterator(dataset, **limits, seed=cfg.common.seed)
    if not callable(iterator.batch_sampler):
        return [len(iterator.batch_sampler)]
    return [
        len(iterator.batch_sampler(dataset, epoch))
        for epoch in range(1, max(cfg.optimization.max_epoch, 1) + 1)
    ]
