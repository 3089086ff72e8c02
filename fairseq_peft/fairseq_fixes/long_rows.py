"""Rows that are longer than a model has room for, in one sentence: fairseq ends in a traceback
where a validation has one, and in an IndexError where no row of a split is left.

fairseq-train leaves them out of what is trained on, ``--skip-invalid-size-inputs-valid-test`` of
the rest.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

from fairseq.tasks import FairseqTask

from fairseq_peft.errors import InputError

_ROOM = (
    "Give a higher --max-source-positions or --max-target-positions (a language model: a lower "
    "--tokens-per-sample), as far as the model has positions, or fewer prompt or prefix tokens"
)


def install() -> None:
    """Let the filter of fairseq's tasks say it; once."""
    if not hasattr(FairseqTask.filter_indices_by_size, "__wrapped__"):
        FairseqTask.filter_indices_by_size = _filter(FairseqTask.filter_indices_by_size)


def _filter(original):
    @functools.wraps(original)
    def filter_indices_by_size(
        task, indices, dataset, max_positions=None, ignore_invalid_inputs=False
    ):
        kept, left_out = dataset.filter_indices_by_size(indices, max_positions)
        split = _name(task, dataset)
        if len(kept) == 0:
            if len(left_out) == 0:
                raise InputError(f"{split} has no rows: there is nothing to make batches of.")
            raise InputError(
                f"No row of {split} is short enough: the shortest of {len(left_out)} has "
                f"{_shortest(dataset, left_out)} tokens, and there is room for "
                f"{_written(max_positions)}. {_ROOM}."
            )
        if len(left_out) == 0:
            return kept
        if not ignore_invalid_inputs:
            row = min(left_out)
            raise InputError(
                f"{split} has rows that are too long ({len(left_out)}): row {row + 1} has "
                f"{_written(dataset.size(row))} tokens, and there is room for "
                f"{_written(max_positions)}. Leave such rows out with "
                f"--skip-invalid-size-inputs-valid-test. {_ROOM}."
            )
        filtered = SimpleNamespace(filter_indices_by_size=lambda *_: (kept, left_out))
        return original(task, indices, filtered, max_positions, ignore_invalid_inputs)  # it warns

    return filter_indices_by_size


def _name(task, dataset):
    """The split that ``dataset`` is; fairseq-interactive's lines are none."""
    names = [name for name, known in task.datasets.items() if known is dataset]
    return names[0] if names else "the input"


def _shortest(dataset, rows):
    """The least length, of each side by itself."""
    sizes = [dataset.size(row) for row in rows]
    if isinstance(sizes[0], (tuple, list)):
        return _written(tuple(min(side) for side in zip(*sizes)))
    return _written(min(sizes))


def _written(size):
    """``12``; ``12 (source) and 9 (target)``."""
    if isinstance(size, (tuple, list)) and len(size) == 2:
        return f"{size[0]} (source) and {size[1]} (target)"
    return str(size)
