"""The mean of several validations of one run: their checkpoints as one adapter folder, scored anew.

The mean is that of the trained parameters, tensor by tensor, as fairseq's average_checkpoints.py
takes it: of LoRA, the mean of A and the mean of B. Their product is not the mean of the products
B A, which is another matrix, of up to k times the rank; ``combine`` makes that of adapter folders.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch
from fairseq import checkpoint_utils, utils
from fairseq.logging import metrics

from fairseq_peft import __version__, scores
from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.checkpoints import file as checkpoint_file
from fairseq_peft.checkpoints import slim
from fairseq_peft.errors import InputError
from fairseq_peft.models import folder
from fairseq_peft.runs import log as run_log
from fairseq_peft.runs import predictions
from fairseq_peft.runs.choice import Choice
from fairseq_peft.tasks.best_adapter import metrics_of
from fairseq_peft.tasks.predictions import Collector

logger = logging.getLogger(__name__)

#: Seconds after which whoever waits is told how far it is.
EVERY = 30
#: What is said of checkpoints that are not there.
KEEP = {
    "last": "--keep-last-epochs {k}, and without --no-epoch-checkpoints",
    "best": "--keep-best-checkpoints {k}",
}


class Kept(NamedTuple):
    """A validation of a run, and the checkpoint of that moment.

    Attributes:
        path: the checkpoint.
        line: its line of metrics.jsonl.
    """

    path: Path
    line: dict


class Average(NamedTuple):
    """What was written.

    Attributes:
        kept: what it is the mean of, in the order of their updates.
        choice: what chooses in this run.
        subsets: split -> scores of the average, as a line of metrics.jsonl has them.
        predictions: what it predicted for each row.
    """

    kept: list[Kept]
    choice: Choice
    subsets: dict[str, dict]
    predictions: predictions.Predictions


def average(
    run_dir: Path,
    which: str,
    number: int,
    out: Path,
    data: str | None = None,
    base: str | None = None,
) -> Average:
    """Write the adapter folder ``out``: the mean of ``number`` validations of the run.

    Args:
        which: ``last`` or ``best``, by what chooses in this run.
        data: the data folder, if it has moved.
        base: the base, a checkpoint or a folder of Hugging Face's, if it has moved.

    Raises:
        InputError: the run does not keep those checkpoints, or something has moved.
    """
    found = adapter_folder.read(run_dir / "adapter", of_any_task=True)
    choice, lines = read_run(run_dir)
    kept = choose(run_dir, choice, lines, which, number)
    told = found.description["task"] if found.is_text else found.description
    data = data or told["data"]
    if not (Path(data).is_dir() if found.is_text else Path(data, "input0", "dict.txt").is_file()):
        raise InputError(
            f"{data}, the run's data folder, does not exist. Say where it is: --data DIR."
        )
    model, saved, task = load(kept[0].path, data, base)
    own = mean([one.path for one in kept], sorted(model.own_names()), base)
    model.load_state_dict({**model.state_dict(), **own})
    splits = list(dict.fromkeys(split for line in lines for split in line["subsets"]))
    subsets, predicted = score(model, saved, task, splits, choice)
    predicted.epoch = kept[-1].line["epoch"]
    head = None if found.is_text else found.description["head"]["name"]
    tensors, described = folder.content(model, head, found.description["base"])
    of_the_files = ("tensors", "files", "json_sha256")
    told = {key: value for key, value in found.description.items() if key not in of_the_files}
    described = {
        **told,
        **described,
        "metrics": metrics_of(choice, {**kept[-1].line, "subsets": subsets}),
        "versions": {"fairseq_peft": __version__, "torch": torch.__version__},
        "origin": {
            "verb": "average",
            "which": which,
            "run": str(run_dir),
            "updates": [one.line["num_updates"] for one in kept],
        },
    }
    copies = found.text_files
    if not found.is_text:
        copies = {adapter_folder.DICTIONARY: found.dictionary, **copies}
    adapter_folder.write(out, tensors, described, copies)
    return Average(kept, choice, subsets, predicted)


def read_run(run_dir: Path) -> tuple[Choice, list[dict]]:
    """What chooses in a run, and its validations.

    Raises:
        InputError: it has made none.
    """
    lines = run_log.read_lines(str(run_dir), 2**62)
    if not lines:
        raise InputError(
            f"{run_dir} has no metrics.jsonl with a validation in it. Give a run of this plugin's "
            "tasks; those of fairseq's own write none, and have no average here."
        )
    return Choice.of_run({"chosen_by": run_log.read_choice(str(run_dir))}), lines


def choose(run_dir: Path, choice: Choice, lines: list[dict], which: str, number: int) -> list[Kept]:
    """The last or best validations of a run, in the order of their updates, with their checkpoints.

    Raises:
        InputError: there are not so many, or a checkpoint was not kept.
    """
    if number < 2:
        raise InputError(f"--{which} {number}: a mean is of 2 or more.")
    if len(lines) < number:
        raise InputError(f"--{which} {number}: {run_dir} has made {len(lines)} validations.")
    chosen = lines[-number:] if which == "last" else best(choice, lines, number)
    files = checkpoints(run_dir)
    missing = [line["num_updates"] for line in chosen if line["num_updates"] not in files]
    if missing:
        raise InputError(
            f"--{which} {number}: {run_dir} keeps no checkpoint of {_updates(missing)} updates (it "
            f"has those of {_updates(files) or 'none'}). Train with "
            f"{KEEP[which].format(k=number)}."
        )
    return [Kept(files[line["num_updates"]], line) for line in chosen]


def best(choice: Choice, lines: list[dict], number: int) -> list[dict]:
    """The best lines of metrics.jsonl, the latest on ties, in the order of their updates."""
    left = list(lines)
    found = []
    while left and len(found) < number:
        one = choice.best_of(left)
        if one is None:
            raise InputError(f"Only {len(found)} validations have a finite {choice.metric}.")
        found.append(one)
        left.remove(one)
    return sorted(found, key=lambda line: line["num_updates"])


def checkpoints(run_dir: Path) -> dict[int, Path]:
    """Number of updates -> a checkpoint that was written after so many."""
    found = {}
    for path in sorted(run_dir.glob("checkpoint*.pt")):
        history = checkpoint_file.read(str(path)).get("optimizer_history")
        if history:
            found.setdefault(history[-1]["num_updates"], path)
    return dict(sorted(found.items()))


def _updates(numbers):
    return ", ".join(map(str, numbers))


def load(path: Path, data: str, base: str | None):
    """A checkpoint's model, its configuration and its task, as fairseq-validate has them."""
    overrides = {"data": data}
    if base is not None:
        overrides["hf_model" if os.path.isdir(base) else "finetune_from_model"] = base
    (model,), saved, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(path)], arg_overrides=overrides
    )
    return model.eval(), saved, task


def mean(paths: list[Path], names: list[str], base: str | None = None) -> dict[str, torch.Tensor]:
    """The mean of each tensor, taken in double precision.

    Raises:
        InputError: a tensor that is no number to average, such as the ranks that AdaLoRA keeps,
            differs.
    """
    total = {}
    for path in paths:
        weights = slim.read(str(path), base)["model"]
        for name in names:
            tensor = weights[name]
            if name not in total:
                total[name] = tensor.double() if tensor.is_floating_point() else tensor
            elif tensor.is_floating_point():
                total[name] += tensor
            elif not torch.equal(total[name], tensor):
                raise InputError(
                    f"{name} differs between {paths[0].name} and {path.name}, and has no mean: "
                    "they are not of one shape yet. Average later checkpoints."
                )
    dtypes = {name: weights[name].dtype for name in names}
    return {
        name: (tensor / len(paths)).to(dtypes[name]) if tensor.is_floating_point() else tensor
        for name, tensor in total.items()
    }


def score(model, saved, task, splits: list[str], choice: Choice):
    """What a validation of the run would say of ``model``: split -> scores, and the predictions."""
    criterion = task.build_criterion(saved.criterion)
    on_gpu = torch.cuda.is_available() and not saved.common.cpu
    if on_gpu:
        model.cuda()
    collector, found = Collector(), {}
    for split in splits:
        dataset = task.load_dataset(split)
        batches = task.get_batch_iterator(
            dataset,
            max_tokens=saved.dataset.max_tokens_valid,
            max_sentences=saved.dataset.batch_size_valid,
        ).next_epoch_itr(shuffle=False)
        logger.info(f"scoring {split}: {len(dataset):,} rows")
        told = time.monotonic()
        with metrics.aggregate(new_root=True) as meters:
            for number, batch in enumerate(batches):
                if time.monotonic() - told > EVERY:
                    logger.info(f"  {number:,} of {len(batches):,} batches")
                    told = time.monotonic()
                sample = utils.move_to_cuda(batch) if on_gpu else batch
                _, _, logged = task.valid_step(sample, model, criterion)
                if dataset.targets is not None:
                    collector.add(sample["id"], criterion.predicted)
                task.reduce_metrics([logged], criterion)
        answers = (None, None)  # of texts, which are not compared
        if dataset.targets is not None:
            answers = collector.end_subset(split, dataset.targets)
        found[split] = scores.of_validation(meters, task.kind, *answers)
        if choice.f1_class is not None:
            k = task.labels.index(choice.f1_class)
            found[split][choice.metric] = scores.f1_of_class(meters, k)
    return found, collector.found
