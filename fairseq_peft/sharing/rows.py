"""Which rows of a batch are whose, how long they are, and what they draw at random.

A batch has the rows of one member below those of the other, padded to the longest; a member is an
adapter that answers requests, or a run that trains. What a member computes by itself it computes of
its own rows as they would be without the others: no longer, and with its own random numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


class Stream:
    """Where a member stands in its own random numbers.

    ``with stream:`` puts torch's generator of the device there and takes note of where it ends, so
    whatever draws within (dropout of any kind) draws what it would in a process of its own.
    """

    def __init__(self, device: torch.device):
        self._random = torch.cuda if device.type == "cuda" else torch
        self._state = self._random.get_rng_state()

    def fork(self) -> Stream:
        """A stream that goes on from the same place, apart."""
        other = object.__new__(Stream)
        other._random, other._state = self._random, self._state.clone()
        return other

    def same(self, other: Stream) -> bool:
        return torch.equal(self._state, other._state)

    def __enter__(self):
        self._random.set_rng_state(self._state)

    def __exit__(self, *error):
        self._state = self._random.get_rng_state()


@dataclass
class Piece:
    """Consecutive rows of a batch that belong to one member.

    Attributes:
        name: the member.
        rows: which they are.
        length: positions of the longest of them; those of a soft prompt count while it is in.
        stream: what the member draws from; None where nothing is drawn.
        num_prefix: keys and values of its own prefix.
    """

    name: str | int
    rows: slice
    length: int
    stream: Stream | None = None
    num_prefix: int = 0

    @property
    def num_rows(self) -> int:
        return self.rows.stop - self.rows.start

    def cut(self, value: torch.Tensor) -> torch.Tensor:
        """Its own of (B, T, ...); of (B, 1, ...), first positions, all of a row."""
        # Laid out as alone: what is dropped where depends on it.
        return value[self.rows, : self.length].contiguous()

    def run(self, function, *inputs):
        """``function(*inputs)``, which draws from the member's stream."""
        with self.stream or contextlib.nullcontext():
            return function(*inputs)


def pieces(names: Sequence[str], length: int) -> list[Piece]:
    """Runs of equal names, all as long as the batch."""
    starts = [i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]]
    ends = [*starts[1:], len(names)]
    return [Piece(names[start], slice(start, end), length) for start, end in zip(starts, ends)]


def join(parts: list[torch.Tensor], dim: int = 1, value: float = 0) -> torch.Tensor:
    """Pieces (B, ...) one below the other, each padded along ``dim`` to the longest."""
    if len(parts) == 1:
        return parts[0]
    longest = max(part.shape[dim] for part in parts)
    return torch.cat([pad(part, longest, dim, value) for part in parts])


def pad(part: torch.Tensor, length: int, dim: int, value: float = 0) -> torch.Tensor:
    """``part`` with ``value`` behind it along ``dim``, up to ``length``."""
    missing = length - part.shape[dim]
    if missing == 0:
        return part
    return F.pad(part, (*[0, 0] * (part.dim() - 1 - dim), 0, missing), value=value)
