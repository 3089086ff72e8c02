"""Which rows of a batch are whose, how long they are, and what they draw at random.

A batch has the rows of one member below those of the other, padded to the longest; a member is an
adapter that answers requests, or a run that trains. What a member computes by itself it computes of
its own rows as they would be without the others: no longer, and with its own random numbers.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fairseq_peft.layers.stacks import times


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

    def run(self, function, *inputs):
        """``function(*inputs)``, which draws from the member's stream."""
        with self.stream or contextlib.nullcontext():
            return function(*inputs)


class Batch(list):
    """The pieces of a pass (``Piece``), whose rows stand one below the other.

    Attributes:
        at_once: whether what members have of their own is computed for the rows of all in one go,
            where it can be, or for one member after the other. None: for all on a GPU, where the
            number of kernels counts.
    """

    at_once = None

    def is_at_once(self, device: torch.device) -> bool:
        return device.type != "cpu" if self.at_once is None else self.at_once

    def stacks(self, x: torch.Tensor) -> bool:
        """Whether x is to be stacked: at most as much again is computed for nobody."""
        few = len(self) * max(self.counts) <= 2 * len(x)
        return few and self.is_at_once(x.device)

    @property
    def counts(self) -> list[int]:
        return [piece.num_rows for piece in self]

    def cut(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What each piece has of (B, T, ...), as long as it is; of (B, 1, ...), first positions,
        all of its rows."""
        # Not a slice for each: its gradient would be as large as x, and their sum as many passes.
        # Laid out as alone: what is dropped where depends on it.
        parts = zip(x.split(self.counts), self)
        return [own[:, : piece.length].contiguous() for own, piece in parts]

    def stack(self, x: torch.Tensor) -> torch.Tensor:
        """(B, ...) -> (M, N, ...), M members with N rows, N the most that one has; who has fewer
        repeats the last."""
        if len(set(self.counts)) > 1:
            x = x.index_select(0, _places(tuple(self.counts), x.device)[0])
        return x.unflatten(0, (len(self), -1))

    def unstack(self, x: torch.Tensor) -> torch.Tensor:
        """``stack`` undone."""
        x = x.flatten(0, 1)
        if len(set(self.counts)) > 1:
            x = x.index_select(0, _places(tuple(self.counts), x.device)[1])
        return x

    def dropped(self, x: torch.Tensor, rates: list[float], drop: Callable) -> torch.Tensor:
        """x (B, T, ...) after dropout: of each piece ``drop(own, rate)`` drops the same numbers.

        Members draw one after the other, each on as many numbers as its own are; that is all they
        do by themselves.
        """
        if not any(rates):
            return x
        _, longest, *rest = x.shape
        shapes = [(piece.num_rows, min(piece.length, longest), *rest) for piece in self]
        ones = x.new_ones(max(map(math.prod, shapes)))
        with torch.no_grad():
            drawn = [
                piece.run(drop, ones[: math.prod(shape)].view(shape), rate)
                for piece, shape, rate in zip(self, shapes, rates)
            ]
            mask = join(drawn).sign_()  # In bf16, 1 / (1 - rate) is off by up to 0.4 %.
        factors = [1 / (1 - rate) for rate, count in zip(rates, self.counts) for _ in range(count)]
        return times(x * mask, factors)


@functools.lru_cache(maxsize=256)
def _places(counts: tuple[int, ...], device):
    """For ``Batch.stack`` and ``unstack``: from which row each comes. Made once, see
    ``layers/stacks.py``."""
    most, into, back = max(counts), [], []
    for member, count in enumerate(counts):
        start = sum(counts[:member])
        into += [start + min(row, count - 1) for row in range(most)]
        back += range(member * most, member * most + count)
    with torch.inference_mode(False):
        return torch.tensor(into, device=device), torch.tensor(back, device=device)


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
