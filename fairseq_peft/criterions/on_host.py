"""Numbers of a step that are logged, brought from a GPU at once."""

from __future__ import annotations

import torch


def on_host(logging_outputs: list) -> list:
    """The logging outputs (dicts) of an update with their tensors on the CPU, by one copy."""
    found = [
        value
        for log in logging_outputs
        for value in log.values()
        if torch.is_tensor(value) and value.device.type != "cpu"
    ]
    if not found:
        return logging_outputs
    here = {id(there): here for there, here in zip(found, together(found))}
    return [{k: here.get(id(value), value) for k, value in log.items()} for log in logging_outputs]


def together(tensors: list) -> list:
    """Copies on the CPU.

    A GPU works behind the process that gives it work. Each number that is asked for by itself is a
    wait for all that it has been given, so all are asked for at once; in double precision, which
    holds those of fp32, and counts, exactly.
    """
    joined = torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors]).cpu()
    parts = joined.split([tensor.numel() for tensor in tensors])
    return [part.to(tensor.dtype).view(tensor.shape) for part, tensor in zip(parts, tensors)]
