"""Features that are the same at each validation, kept in memory.

Below the first tensor that trains, a batch of ``valid`` or ``test`` gives the same features each
time: nothing there changes, in evaluation there is no dropout, and the batches are the same ones.
With ``--peft head_only`` that is the whole encoder. ``Encoder.forward`` asks before its first layer
and goes on where what is kept ends.

Only the same batch counts, token by token and padding included: features of one row differ in their
last bits with what stands beside it.
"""

from __future__ import annotations

import hashlib

import torch


class KeptFeatures:
    """Batches of tokens -> what the frozen layers made of them.

    What is kept counts for the tensors that it was computed with, as long as nobody writes to them,
    by torch's own count of writes, which ``tensor.data`` evades. So models that share their frozen
    tensors may share this, too; a copy of a model keeps nothing.

    Attributes:
        limit_bytes: memory to use. What does not fit is computed anew; 0 keeps nothing.
        num_bytes: memory in use.
    """

    def __init__(self, limit_bytes: int = 0):
        self.limit_bytes = limit_bytes
        self.num_bytes = 0
        self._found: dict[tuple, torch.Tensor] = {}
        self._states: dict[tuple, list] = {}  # the tensors live on, so that no id is used again

    def __deepcopy__(self, memo):
        return KeptFeatures()

    def below(self, encoder, tokens, first_only) -> tuple[int, tuple]:
        """What may be known of a batch.

        Returns:
            How many layers, from the first on, are computed once: 0 while the encoder trains; and
            the batch's key for ``get`` and ``add``.
        """
        if not self.limit_bytes or encoder.training:
            return 0, ()
        number, frozen = frozen_below(encoder)
        state = tuple((id(tensor), tensor.data_ptr(), tensor._version) for tensor in frozen)
        self._states.setdefault(state, frozen)
        first_only = first_only and number == len(encoder.layers)
        digest = hashlib.sha256(tokens.cpu().contiguous().numpy().tobytes()).digest()
        return number, (state, digest, tuple(tokens.shape), first_only)

    def get(self, key: tuple) -> torch.Tensor | None:
        """The features (B, T or 1, C) that are kept of a batch; None if there are none."""
        return self._found.get(key)

    def add(self, key: tuple, features: torch.Tensor) -> None:
        """Keep the features of a batch, if they fit."""
        size = features.untyped_storage().nbytes()
        if self.num_bytes + size <= self.limit_bytes:
            self._found[key] = features.detach()
            self.num_bytes += size


def frozen_below(encoder) -> tuple[int, list[torch.Tensor]]:
    """The layers, from the first on, that are frozen with all before them: how many, and their
    tensors with those of the embeddings.

    None are below a prompt or a prefix, nor are layers with hooks, which want to be called.
    """
    found = _tensors_outside_layers(encoder)
    entered = encoder.soft_prompt is not None or encoder.prefix is not None
    if entered or any(tensor.requires_grad for tensor in found):
        return 0, []
    number = 0
    for layer in encoder.layers:
        tensors = [*layer.parameters(), *layer.buffers()]
        if any(tensor.requires_grad for tensor in tensors) or _has_hooks(layer):
            break
        found += tensors
        number += 1
    return number, found


def _tensors_outside_layers(encoder):
    """Those of the embeddings. The norm behind the last layer is computed anew each time."""
    after = ("layers.", "layer_norm.")
    named = [*encoder.named_parameters(), *encoder.named_buffers()]
    return [tensor for name, tensor in named if not name.startswith(after)]


def _has_hooks(layer):
    return any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules())
