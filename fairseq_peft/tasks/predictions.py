"""Collects what a run predicts for each row while its splits are evaluated."""

from __future__ import annotations

import contextlib

import torch
from fairseq.distributed import utils as distributed_utils

from fairseq_peft.runs import predictions as files


class Collector:
    """The answers of one validation, put in the order of the data.

    Batches come by length, and each process evaluates some of them: rows are told apart by their
    number in the data set. A process without a batch of its own repeats one, with the same result.
    """

    def __init__(self):
        self.begin()

    def begin(self) -> None:
        """A validation begins."""
        self.found = files.Predictions()
        self.batches = []

    def go_on(self, run_dir: str, num_updates: int) -> None:
        """What begins is the rest of the validation after so many updates."""
        with contextlib.suppress(FileNotFoundError):  # texts are no answers to compare
            self.found = files.read(files.path_of(run_dir, num_updates))

    def add(self, ids: torch.Tensor, predicted: torch.Tensor) -> None:
        """A batch: the rows' numbers (B,) and their answers, (B,) or (B, labels)."""
        self.batches.append((ids, predicted))

    def end_subset(self, split: str, targets) -> tuple:
        """A split is done; ``targets`` (N,) or (N, labels) are the data's.

        Returns:
            What was predicted of its rows, and the targets; when asked again, the same.

        Raises:
            RuntimeError: a row has no prediction.
        """
        if split in self.found.target:
            return self.found.predicted[split], targets
        ids, predicted = (torch.cat(parts) for parts in zip(*self.batches))
        self.batches = []
        nothing = float("-inf") if predicted.is_floating_point() else -1
        shape = (len(targets), *predicted.shape[1:])
        found = torch.full(shape, nothing, dtype=predicted.dtype, device=ids.device)
        found[ids] = predicted
        if distributed_utils.get_data_parallel_world_size() > 1:
            group = distributed_utils.get_data_parallel_group()
            distributed_utils.all_reduce(found, group, op="max")
        missing = found == nothing
        if missing.any():
            raise RuntimeError(f"{int(missing.sum())} rows of {split!r} have no prediction.")
        self.found.add(split, targets, found.cpu().numpy())
        return self.found.predicted[split], targets

    def write(self, run_dir: str, epoch: int, num_updates: int) -> None:
        """Write the file of a validation: all splits are done."""
        self.found.epoch = epoch
        files.write(files.path_of(run_dir, num_updates), self.found)
