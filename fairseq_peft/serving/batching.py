"""Rows of many requests joined into batches, for one model that one thread computes with.

A row waits until there are enough for a batch, or until it has waited long enough. How many may
wait is bounded: beyond it a request is refused at once, whole, so that whoever asks can come back
instead of waiting for ever. What has been taken is answered, also while the service stops.

Where rows cannot all go through the model together, those of a request say their lane, and a batch
is of one lane: that of the row that has waited longest, so that none waits for ever.

All of it runs in one event loop, so nothing here needs a lock; only ``predict`` runs elsewhere.
"""

from __future__ import annotations

import asyncio
import collections
import math
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

#: How much the newest batch counts in the mean of seconds a row.
NEWEST = 0.2


class Full(Exception):
    """There is no room for the rows of this request.

    Attributes:
        seconds: until there may be, a whole number of at least 1.
    """

    def __init__(self, seconds: int):
        super().__init__(f"full for about {seconds} s")
        self.seconds = seconds


class Stopping(Exception):
    """The service stops: nothing more is taken."""


@dataclass
class Request:
    """The rows that were asked for together.

    Attributes:
        lane: what the rows of a batch have in common.
        answers: that to each row, None of those that still wait.
        answered: done when all rows are, or one has failed.
        since: when it came, by the clock of the event loop.
    """

    adapter: str
    rows: Sequence
    lane: Hashable
    answered: asyncio.Future
    since: float
    answers: list = field(init=False)
    num_left: int = field(init=False)

    def __post_init__(self):
        self.answers = [None] * len(self.rows)
        self.num_left = len(self.rows)

    def take(self, number: int, answer) -> None:
        """The answer of row ``number``."""
        self.answers[number] = answer
        self.num_left -= 1
        if not self.num_left and not self.answered.done():
            self.answered.set_result(self.answers)


class Batcher:
    """Takes the rows of requests through a model, in batches.

    Args:
        compute: (rows, adapter of each row, their lane) -> the answer to each; called in one
            thread.
        max_batch: rows of a batch, at most.
        max_wait_s: how long a row waits for others while there are fewer.
        max_waiting: rows that may wait for a batch.

    Attributes:
        stopping: whether nothing more is taken.
        num_rows: adapter -> rows that have been answered.
        num_batches, busy_s: batches so far, and the seconds that they took.
    """

    def __init__(self, compute: Callable, max_batch: int, max_wait_s: float, max_waiting: int):
        self.max_batch, self.max_wait_s, self.max_waiting = max_batch, max_wait_s, max_waiting
        self.stopping = False
        self.num_rows, self.num_batches, self.busy_s = collections.Counter(), 0, 0.0
        self._compute = compute
        self._row_s = 0.0  # seconds that a row takes, of late
        self._waiting = collections.deque()  # (request, number of its row)
        self._open = set()  # what ``answered`` of the requests that are not answered yet

    async def start(self) -> None:
        """Begin, in the event loop of the caller."""
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "compute")
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """Take nothing more, and wait until what has been taken is answered."""
        self.stopping = True
        self._changed.set()
        if self._open:
            await asyncio.wait(self._open)

    async def close(self) -> None:
        """``stop``, and end the thread."""
        await self.stop()
        self._task.cancel()
        self._thread.shutdown()

    @property
    def num_waiting(self) -> int:
        """Rows that wait for a batch."""
        return len(self._waiting)

    @property
    def num_open(self) -> int:
        """Requests that have been taken and are not answered yet."""
        return len(self._open)

    async def answer(self, adapter: str, rows: Sequence, lane: Hashable = None) -> list:
        """The answer to each row; rows of other lanes are in other batches.

        Raises:
            Full: too many rows wait already; none of these has been taken.
            Stopping: nothing more is taken.
        """
        if self.stopping:
            raise Stopping
        if self.num_waiting + len(rows) > self.max_waiting:
            raise Full(max(1, math.ceil(self.num_waiting * self._row_s)))
        if not rows:
            return []
        loop = asyncio.get_running_loop()
        request = Request(adapter, rows, lane, loop.create_future(), loop.time())
        self._open.add(request.answered)
        request.answered.add_done_callback(self._open.discard)
        self._waiting.extend((request, number) for number in range(len(rows)))
        self._changed.set()
        return await request.answered

    async def _run(self):
        while True:
            await self._enough()
            # Of a request that has failed, or that nobody waits for, the rest is not computed.
            batch = [entry for entry in self._take() if not entry[0].answered.done()]
            if batch:
                await self._answer(batch)

    def _take(self) -> list:
        """The rows of the next batch, in the order in which they came."""
        lane, taken, left = self._waiting[0][0].lane, [], collections.deque()
        for entry in self._waiting:
            fits = len(taken) < self.max_batch and entry[0].lane == lane
            (taken if fits else left).append(entry)
        self._waiting = left
        return taken

    async def _enough(self):
        """Wait until there is a batch."""
        while not self._waiting:
            self._changed.clear()
            await self._changed.wait()
        first = self._waiting[0][0]
        end = first.since + self.max_wait_s
        while not self.stopping:
            if sum(entry[0].lane == first.lane for entry in self._waiting) >= self.max_batch:
                return
            left = end - asyncio.get_running_loop().time()
            if left <= 0:
                return
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except asyncio.TimeoutError:
                return

    async def _answer(self, batch):
        rows = [request.rows[number] for request, number in batch]
        names = [request.adapter for request, _ in batch]
        started = time.perf_counter()
        try:
            answers = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._compute, rows, names, batch[0][0].lane
            )
        except Exception as error:
            if len(batch) > 1:  # the others are not to suffer from one
                for entry in batch:
                    await self._answer([entry])
                return
            (request, _), *_ = batch
            if not request.answered.done():
                request.answered.set_exception(error)
            return
        spent = time.perf_counter() - started
        self.num_batches += 1
        self.busy_s += spent
        self._row_s += (NEWEST if self._row_s else 1) * (spent / len(batch) - self._row_s)
        self.num_rows.update(names)
        for (request, number), answer in zip(batch, answers):
            request.take(number, answer)
