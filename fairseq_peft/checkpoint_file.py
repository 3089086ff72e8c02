"""Opening a file of fairseq's: weights and plain values, never code."""

from __future__ import annotations

import pickle
import re
import warnings

import torch

from fairseq_peft.errors import InputError


def read(path: str) -> dict:
    """A fairseq checkpoint, as it lies on the disk, through torch's safe loader.

    Raises:
        InputError: it is cut short, no checkpoint, or would need to run code.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's text goes on to recommend the unsafe loader; only what it met is of use here.
        met = re.search(r"(Unsupported|Trying to load) .*", str(error))
        raise InputError(
            f"{path} holds more than tensors and plain values, or is no checkpoint; it is not "
            f"opened, because that could run code ({met[0].rstrip('.') if met else 'unknown'}). "
            "Give a checkpoint of fairseq-train."
        ) from error
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        lines = str(error).strip().splitlines() or [""]
        raise InputError(
            f"{path} cannot be read as a checkpoint: it is cut short, damaged or no checkpoint "
            f"({type(error).__name__}: {lines[0][:200]}). Copy or make it again, or give another "
            "one."
        ) from error
    model = state.get("model") if isinstance(state, dict) else None
    if not isinstance(model, dict) or not all(isinstance(v, torch.Tensor) for v in model.values()):
        raise InputError(f"{path} has no weights under 'model': it is no fairseq checkpoint.")
    if not ("optimizer_history" in state and "extra_state" in state or "best_loss" in state):
        raise InputError(
            f"{path} has weights but not the entries 'optimizer_history' and 'extra_state', "
            "without which fairseq does not load it. Give the file that fairseq-train wrote or "
            "that was published for fairseq."
        )
    return state
