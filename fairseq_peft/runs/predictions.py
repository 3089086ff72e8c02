"""What a run predicted for each row: predictions/update<n>.npz of each validation while it trains,
then predictions.npz of the best.

Two methods can only be compared row by row with these; metrics.jsonl has but the counts. A file is
compressed and takes about a bit a row of two classes.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.files import whole

#: In a run's folder: a file for each validation, and the file of the chosen one.
FOLDER, NAME = "predictions", "predictions.npz"


@dataclass
class Predictions:
    """The answers of every row of the evaluated splits, in the order of the data.

    Attributes:
        epoch: after which they were made; 0 where a method has no epochs.
        target: split -> (N,) class ids of the data, in the order of ``labels`` of run.json; (N, K)
            zeros and ones where a row has any number of labels; (N,) floats where it has a number.
        predicted: split -> the same, as the model gave it.
    """

    epoch: int = 0
    target: dict = field(default_factory=dict)
    predicted: dict = field(default_factory=dict)

    def add(self, split: str, target, predicted) -> None:
        self.target[split], self.predicted[split] = target, predicted

    def num_correct(self, split: str) -> int:
        return int(right(self.target[split], self.predicted[split]).sum())


def right(target, predicted):
    """(N,) whether a row's answer is right: its class, or all of its labels."""
    same = target == predicted
    return same if same.ndim == 1 else same.all(axis=-1)


def path_of(run_dir: Path | str, num_updates: int) -> Path:
    """The file of the validation after so many updates."""
    return Path(run_dir) / FOLDER / f"update{num_updates}.npz"


def write(path: Path | str, predictions: Predictions) -> None:
    """Write a file whole or not at all; its folder is made."""
    import numpy as np

    arrays = {"epoch": np.array(predictions.epoch)}
    for split, target in predictions.target.items():
        if np.issubdtype(np.asarray(target).dtype, np.floating):
            kind = np.float32
        else:
            most = max(int(np.max(target)), int(np.max(predictions.predicted[split])))
            kind = np.min_scalar_type(most)
        arrays[f"{split}.target"] = np.asarray(target, dtype=kind)
        arrays[f"{split}.predicted"] = np.asarray(predictions.predicted[split], dtype=kind)
    os.makedirs(Path(path).parent, exist_ok=True)
    with whole(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read(path: Path | str) -> Predictions:
    """What ``write`` wrote.

    Raises:
        FileNotFoundError: there is none.
        InputError: it is no such file, or a part of it is missing.
    """
    import numpy as np

    found = Predictions()
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found.epoch = int(arrays["epoch"])
            for name in arrays.files:
                split, _, kind = name.rpartition(".")
                if kind == "target":
                    found.add(split, arrays[name], arrays[f"{split}.predicted"])
    except FileNotFoundError:
        raise
    except Exception as error:  # what a damaged archive raises depends on where
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"'{path}' is not the file of predictions that a run writes ({reason}): delete it; "
            "only training again brings it back"
        ) from None
    for split, target in found.target.items():
        shapes = target.shape, found.predicted[split].shape
        if len(shapes[0]) not in (1, 2) or shapes[0] != shapes[1]:
            raise InputError(
                f"'{path}': {shapes[0]} targets and {shapes[1]} predictions of {split!r}, expected "
                "one of each a row: delete it; only training again brings it back"
            )
    return found


def keep(run_dir: Path | str, epoch: int, num_updates: int) -> None:
    """Move the file of the validation after ``num_updates`` to predictions.npz and remove the
    others; an earlier version named the files by their epoch.

    Where there is none, predictions.npz stays: a run that goes on after this may find no better
    epoch, and one of an earlier version has nothing to keep.
    """
    run_dir = Path(run_dir)
    for chosen in (path_of(run_dir, num_updates), run_dir / FOLDER / f"epoch{epoch}.npz"):
        if chosen.is_file():
            os.replace(chosen, run_dir / NAME)
            break
    shutil.rmtree(run_dir / FOLDER, ignore_errors=True)
