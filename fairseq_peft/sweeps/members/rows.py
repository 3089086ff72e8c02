"""Rows of several members in one tensor, and which rows are whose.

A member is one set of adapters and heads on a base that all share: a run of a sweep, or one of many
adapters that serve requests. The batches of all members stand one after the other as tokens (N, C),
each (B, T) with its own padding, so that a frozen map runs once over all of them and nobody is
padded to another's length.

As long as two members would compute the same thing (the same batch in validation, below the first
module that differs), they own the same segment, and it is computed once.

Shape letters: B batch, T tokens, C model dim, N sum of all B T, M members.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


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


class Rows:
    """Segments (B, T, C) in one tensor.

    Attributes:
        x: (N, C), the segments' tokens one after the other.
        sizes: (B, T) of each segment.
        of: the number of the segment that each of the M members owns.
    """

    def __init__(self, x: torch.Tensor, sizes: list[tuple[int, int]], of: list[int]):
        self.x = x
        self.sizes = sizes
        self.of = of
        self._segments = None

    @classmethod
    def join(cls, segments: list[torch.Tensor], of: list[int]) -> Rows:
        """From segments (B, T, C)."""
        sizes = [tuple(segment.shape[:2]) for segment in segments]
        flat = [segment.flatten(0, 1) for segment in segments]
        return cls(flat[0] if len(flat) == 1 else torch.cat(flat), sizes, list(of))

    def part(self, member: int) -> torch.Tensor:
        """The rows of a member, (B, T, C)."""
        if self._segments is None:
            # One split: in the backward pass it is one concatenation, not a sum of padded parts.
            flat = self.x.split([b * t for b, t in self.sizes]) if len(self.sizes) > 1 else [self.x]
            self._segments = [
                tokens.view(*size, *tokens.shape[1:]) for tokens, size in zip(flat, self.sizes)
            ]
        return self._segments[self.of[member]]

    def all(self, function: Callable) -> Rows:
        """``function`` of all tokens at once, (N, C) -> (N, ...)."""
        return Rows(function(self.x), self.sizes, self.of)

    def first(self) -> Rows:
        """The first position of each row."""
        starts, at = [], 0
        for b, t in self.sizes:
            starts += range(at, at + b * t, t)
            at += b * t
        index = torch.tensor(starts, device=self.x.device)
        return Rows(self.x.index_select(0, index), [(b, 1) for b, _ in self.sizes], self.of)

    def __add__(self, other: Rows) -> Rows:
        if self.of == other.of:
            return Rows(self.x + other.x, self.sizes, self.of)
        return each(lambda member, a, b: a + b, self, other)


def each(function: Callable, *rows: Rows, own=False, streams: list[Stream] | None = None) -> Rows:
    """``function(member, *parts)`` for every member, once for those to whom it is the same.

    Args:
        function: takes the number of a member and its part (B, T, ...) of each of ``rows``; returns
            (B', T', ...).
        own: whether it depends on the member, not on its rows alone.
        streams: for what draws random numbers, the members' streams. Members with one stream object
            and the same rows draw once; where their rows are no longer the same, each gets a stream
            object of its own, in place.
    """
    groups = {}
    for member in range(len(rows[0].of)):
        key = [part.of[member] for part in rows]
        key += [member] if own else []
        key += [id(streams[member])] if streams else []
        groups.setdefault(tuple(key), []).append(member)
    segments, of = [], [0] * len(rows[0].of)
    leaders = {}
    for group in groups.values():
        for member in group:
            of[member] = len(leaders)
        leaders[group[0]] = group
    if streams:
        _part_ways(streams, leaders.values())
    for member in leaders:
        parts = [part.part(member) for part in rows]
        if streams:
            with streams[member]:
                segments.append(function(member, *parts))
        else:
            segments.append(function(member, *parts))
    return Rows.join(segments, of)


def _part_ways(streams, groups):
    """Give each group of members a stream object that no other group has."""
    taken = set()
    for group in groups:
        stream = streams[group[0]]
        if id(stream) in taken:
            stream = stream.fork()
            for member in group:
                streams[member] = stream
        taken.add(id(stream))
