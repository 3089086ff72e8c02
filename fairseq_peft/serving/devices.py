"""Where a model computes: a device that this machine has, or a sentence."""

from __future__ import annotations

from typing import Union

import torch

from fairseq_peft.errors import InputError


def check(device: Union[str, torch.device]) -> None:
    """Raise InputError unless this machine has ``device``, such as ``cpu`` or ``cuda:1``."""
    try:
        torch.empty(1, device=device)
    except Exception as error:  # what is raised depends on the device and on how torch was built
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120].rstrip(".")
        known = "cpu or cuda" if torch.cuda.is_available() else "cpu"
        raise InputError(f"The device {device} cannot be used ({reason}). Give {known}.") from error
