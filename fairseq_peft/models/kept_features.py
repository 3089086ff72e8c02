"""Features that stay the same for a whole run, kept in memory and on disk.

Below the first tensor that trains nothing changes, so what is computed there need not be computed
again. With ``--peft head_only`` that is the whole encoder. ``Encoder.forward`` asks before its
first layer and goes on where what is kept ends.

Features of a row differ in their last bits with what stands beside it, so:

- a batch of ``valid`` or ``test``, which is the same at each validation, is kept as a batch: only
  the same one counts, token by token and padding included;
- batches of ``train`` are drawn anew each epoch, so there each row goes through the frozen layers
  alone, and is kept by itself. Whether it is kept or computed again makes no difference then, nor
  does its batch. That needs layers that draw nothing (``--frozen-dropout off``), and a processor:
  on a GPU a row takes as long as a batch.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile

import torch
from torch import nn

from fairseq_peft.layers.dropout import Dropout
from fairseq_peft.layers.settings import settings

logger = logging.getLogger(__name__)

#: Of what is free on a disk, features take at most this share: checkpoints want to be written.
SHARE_OF_DISK = 0.25


class KeptFeatures:
    """Batches of tokens -> what the frozen layers made of them.

    What is kept counts for the tensors that it was computed with, as long as nobody writes to them,
    by torch's own count of writes, which ``tensor.data`` evades, and for the settings of the layers
    (``layers/settings.py``), their precision among them. So models that share their frozen tensors
    may share this, too; a copy of a model keeps nothing.

    Args:
        limit_bytes: memory to use.
        in_training: whether rows of training batches go through the frozen layers alone, kept or
            not, where that is possible.
        folder: where a file may lie for what has no room in memory.
        disk_bytes: how large that may become. What has no room there either is computed anew.

    Attributes:
        num_bytes: memory in use.
        disk: the ``FeatureFile``, or None.
    """

    def __init__(self, limit_bytes=0, in_training=False, folder=None, disk_bytes=0):
        self.limit_bytes = limit_bytes
        self.in_training = in_training
        self.num_bytes = 0
        self.disk = FeatureFile(folder, disk_bytes) if disk_bytes else None
        self._in_memory: dict[tuple, torch.Tensor] = {}
        self._states: dict[tuple, list] = {}  # the tensors live on, so that no id is used again
        self._told = False

    def __bool__(self):
        """Whether it keeps anything."""
        return bool(self.limit_bytes or self.disk)

    def __deepcopy__(self, memo):
        return KeptFeatures(in_training=self.in_training)

    def below(self, encoder, tokens, first_only) -> tuple[int, torch.Tensor | None]:
        """What the first layers of ``encoder`` make of tokens (B, T), where they are frozen.

        Returns:
            How many layers they are, and their features (B, T, C), or (B, 1, C) with ``first_only``
            and if they are all; 0 and None where nothing is known before the pass.
        """
        training = encoder.training
        if not (self.in_training and tokens.device.type == "cpu" if training else self):
            return 0, None
        number, frozen = frozen_below(encoder)
        if not number or (training and draws(encoder, number)):
            return 0, None
        state = tuple((id(tensor), tensor.data_ptr(), tensor._version) for tensor in frozen)
        self._states.setdefault(state, frozen)
        state = (state, settings_below(encoder, number))
        first_only = first_only and number == len(encoder.layers)

        def features(batch):
            digest = hashlib.sha256(batch.cpu().contiguous().numpy().tobytes()).digest()
            key = (state, digest, tuple(batch.shape), first_only)
            found = self._get(key)
            if found is None:
                with torch.no_grad():
                    found = encoder.first_layers(batch, number, first_only)
                self._put(key, found)
            return found

        if not training:
            return number, features(tokens)
        is_text = tokens.ne(encoder.padding_idx)
        rows = [features(row[text].unsqueeze(0)) for row, text in zip(tokens, is_text)]
        if first_only:
            return number, torch.cat(rows)
        joined = rows[0].new_zeros(*tokens.shape, rows[0].shape[-1])
        joined[is_text] = torch.cat(rows, 1)[0]
        return number, joined

    def _get(self, key):
        found = self._in_memory.get(key)
        return self.disk.get(key) if found is None and self.disk else found

    def _put(self, key, found):
        size = found.untyped_storage().nbytes()
        if self.num_bytes + size <= self.limit_bytes:
            self._in_memory[key] = found
            self.num_bytes += size
        elif not (self.disk and self.disk.put(key, found)) and self and not self._told:
            self._told = True
            logger.info(
                f"no room for more features of frozen layers in {self.limit_bytes / 10**6:,.0f} MB "
                "of memory (--keep-features)"
                + (f" and {self.disk.in_words} (--keep-features-on-disk)" if self.disk else "")
                + ": those of other batches are computed anew each time"
            )


class FeatureFile:
    """Features on disk, in a file without a name: it is gone with the process, however that ends.

    Args:
        folder: on the disk that is used.
        limit_bytes: the most that the file may take; ``SHARE_OF_DISK`` of what is free is another
            bound, found when the first features are written.
    """

    def __init__(self, folder, limit_bytes: int):
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.num_bytes = 0
        self._file = None
        self._places: dict[tuple, tuple] = {}

    @property
    def in_words(self) -> str:
        """Its limit."""
        return f"{self.limit_bytes / 10**6:,.0f} MB of disk in '{self.folder}'"

    def get(self, key) -> torch.Tensor | None:
        """What was put there under ``key``, bit for bit, or None."""
        if key not in self._places:
            return None
        start, size, dtype, shape, device = self._places[key]
        read = bytearray(os.pread(self._file.fileno(), size, start))
        return torch.frombuffer(read, dtype=dtype).view(shape).to(device)

    def put(self, key, features: torch.Tensor) -> bool:
        """Keep ``features``, and say whether there was room."""
        flat = features.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        size = flat.nbytes
        try:
            if self._file is None and self.limit_bytes:
                free = SHARE_OF_DISK * shutil.disk_usage(self.folder).free
                self.limit_bytes = min(self.limit_bytes, int(free))
                self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
            if self.num_bytes + size > self.limit_bytes:
                return False
            done = 0
            while done < size:  # a write may be shorter than what it was given
                done += os.pwrite(self._file.fileno(), flat[done:], self.num_bytes + done)
        except OSError as error:
            logger.warning(f"no more features are kept in '{self.folder}': {error.strerror}")
            self.limit_bytes = 0
            return False
        place = (self.num_bytes, size, features.dtype, features.shape, features.device)
        self._places[key] = place
        self.num_bytes += size
        return True


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


def settings_below(encoder, number: int) -> tuple:
    """What the embeddings and the first ``number`` layers compute by besides their tensors."""
    others = [child for child in encoder.children() if child is not encoder.layers]
    below = [*others, *(encoder.layers[index] for index in range(number))]
    return (settings(encoder), *(settings(each) for part in below for each in part.modules()))


def draws(encoder, number: int) -> bool:
    """Whether the embeddings or one of the first ``number`` layers draw at random in training."""
    modules = [encoder.dropout_module]
    for _, layer in zip(range(number), encoder.layers):
        modules += layer.modules()
    drops = (m for m in modules if isinstance(m, (Dropout, nn.Dropout)))
    return encoder.encoder_layerdrop > 0 or any(module.p > 0 for module in drops)


def _tensors_outside_layers(encoder):
    """Those of the embeddings. The norm behind the last layer is computed anew each time."""
    after = ("layers.", "layer_norm.")
    named = [*encoder.named_parameters(), *encoder.named_buffers()]
    return [tensor for name, tensor in named if not name.startswith(after)]


def _has_hooks(layer):
    return any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules())
