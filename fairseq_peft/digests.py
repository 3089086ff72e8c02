"""SHA-256 of tensors: what a frozen model, a base checkpoint and a file are recognised by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch


def digest(name: str, tensor: torch.Tensor) -> str:
    """SHA-256 of name, type, shape and bytes."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    found = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
    found.update(data)
    return found.hexdigest()


def combine(digests: Mapping[str, str]) -> str:
    """SHA-256 of many digests by name, whatever their order."""
    joined = "".join(digests[name] for name in sorted(digests))
    return hashlib.sha256(joined.encode()).hexdigest()
