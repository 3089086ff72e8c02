"""What a service is, whatever its model answers: limits, batches, counters, refusals.

    POST /predict or /generate       {"adapter": "books", "texts": ["Un bon livre", "Nul"]}
    GET  /adapters  what there is    /health  is it up    /metrics  counters    /docs  this, to try

``predict.py`` and ``generate.py`` say what is asked and answered. Whatever cannot be answered is
``{"error": "one sentence"}``.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from fairseq_peft.errors import InputError
from fairseq_peft.serving.batching import Batcher, Full, Stopping


@dataclass
class Limits:
    """What one request, and all that wait, may hold.

    Attributes:
        max_batch: rows that go through the model at once.
        max_wait_ms: how long a row waits for others to join it.
        queue: rows that may wait, of all requests.
        max_texts: rows of one request.
        max_bytes: of the body of one request.
    """

    max_batch: int = 64
    max_wait_ms: float = 5
    queue: int = 1024
    max_texts: int = 512
    max_bytes: int = 2**20

    def check(self) -> None:
        """Raise InputError where a limit cannot be."""
        for name, value in vars(self).items():
            if name != "max_wait_ms" and value < 1:
                raise InputError(f"--{name.replace('_', '-')} {value}: give 1 or more.")
        if not 0 <= self.max_wait_ms <= 60_000:
            raise InputError(f"--max-wait-ms {self.max_wait_ms:g}: give 0 to 60000 milliseconds.")
        if self.max_texts > self.queue:
            raise InputError(
                f"A request of --max-texts {self.max_texts} texts would never fit into --queue "
                f"{self.queue}. Give a longer queue, or fewer texts."
            )


class Asked:
    """What a request says, a dataclass: FastAPI checks it, up to the first fault.

    An error an item, or a key, would take a thousand times the memory of a request full of them.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source, handler):
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(cls.up_to_fault, handler(source))

    @classmethod
    def up_to_fault(cls, given):
        """``given`` without what comes behind the first unknown key, and in lists behind the first
        item that is no text, or no pair of texts where it is one of ``pairs``."""
        if not isinstance(given, dict):
            return given
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = [key for key in given if key not in known][:1]
        found = {key: value for key, value in given.items() if key in known or key in unknown}
        for key, is_row in (("texts", is_text), ("pairs", is_pair)):
            rows = found.get(key)
            if isinstance(rows, list):
                faults = (place for place, row in enumerate(rows) if not is_row(row))
                found[key] = rows[: next(faults, len(rows)) + 1]
        return found


def is_text(value) -> bool:
    """Whether an item of ``texts`` is as it should be."""
    return isinstance(value, str)


def is_pair(value) -> bool:
    """Whether an item of ``pairs`` is as it should be."""
    return isinstance(value, list) and len(value) == 2 and all(map(is_text, value))


@dataclass
class Refusal:
    """Why there is no answer."""

    error: str


class Refused(Exception):
    """A request that gets no answer, and why: a sentence."""

    def __init__(self, status: int, text: str, **headers):
        super().__init__(text)
        self.status, self.headers = status, headers


class Service:
    """A model, its batches, and what has been counted.

    A subclass says what a request asks and how it is answered.

    Attributes:
        path: where it is asked.
        about: what it does, for who reads /docs.
        expected: what a request holds, for who sent another.
        Inventory: the type of what /adapters answers.
        model: has ``adapters``, their names.
    """

    path: str
    about: str
    expected: str
    Inventory: type

    def __init__(self, model, limits: Limits):
        self.model, self.limits = model, limits
        self.batcher = Batcher(
            self.compute, limits.max_batch, limits.max_wait_ms / 1000, limits.queue
        )
        self.num_requests = collections.Counter()  # by status

    @property
    def paths(self) -> list[str]:
        """All paths where it is asked."""
        return [self.path]

    def compute(self, rows: list, adapters: list[str], lane: Hashable) -> list:
        """The answer to each row of a batch; in the thread that computes."""
        raise NotImplementedError

    def add_paths(self, app, refusals: dict) -> None:
        """Add ``path`` to an application; ``refusals`` are its statuses that are none of success,
        as FastAPI takes them."""
        raise NotImplementedError

    def inventory(self):
        """What /adapters answers, an ``Inventory``."""
        raise NotImplementedError

    def name_of(self, asked: str | None) -> str:
        """The adapter that a request means.

        Raises:
            Refused: there is none of that name, or it says none and there are several.
        """
        names = self.model.adapters
        if asked is None and len(names) == 1:
            (asked,) = names
        if asked is None:
            raise Refused(422, f'Name the "adapter". Loaded: {", ".join(names)}.')
        if asked not in names:
            raise Refused(404, f"There is no adapter {asked!r}. Loaded: {', '.join(names)}.")
        return asked

    def check_rows(self, rows: list) -> None:
        """Raise Refused at too many rows, or at half a character, which JSON can escape, and an
        answer cannot repeat."""
        if len(rows) > self.limits.max_texts:
            raise Refused(
                413,
                f"{len(rows)} rows in one request are more than {self.limits.max_texts}. Give them "
                "in several.",
            )
        for number, row in enumerate(rows, start=1):
            for text in (row,) if isinstance(row, str) else row:
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    raise Refused(
                        422,
                        f"Row {number} has half a character at {error.start}: "
                        f"{text[error.start]!r} is no text without its other half. Take it out.",
                    ) from None

    async def answers(self, adapter: str, rows: list, lane: Hashable = None) -> list[Any]:
        """What is computed of each row, in a batch with others of its lane.

        Raises:
            Refused: there is no room, the service stops, or the model refuses a row.
        """
        try:
            return await self.batcher.answer(adapter, rows, lane)
        except Full as error:
            wait = {"Retry-After": str(error.seconds)}
            waiting = self.batcher.num_waiting
            raise Refused(
                429,
                f"{waiting} texts wait already, and with these {len(rows)} there would be more "
                f"than {self.limits.queue}. Ask again in {error.seconds} s.",
                **wait,
            ) from None
        except Stopping:
            raise Refused(503, "The service is stopping. Ask another one.") from None
        except InputError as error:
            raise Refused(422, str(error)) from None

    def metrics(self) -> str:
        """Counters, as Prometheus reads them."""
        batcher = self.batcher
        by_status = sorted(self.num_requests.items())
        by_adapter = [(name, batcher.num_rows[name]) for name in self.model.adapters]
        told = [
            ("requests_total", "counter", {f'{{status="{k}"}}': n for k, n in by_status}),
            ("rows_total", "counter", {f'{{adapter="{k}"}}': n for k, n in by_adapter}),
            ("batches_total", "counter", {"": batcher.num_batches}),
            ("busy_seconds_total", "counter", {"": f"{batcher.busy_s:.6f}"}),
            ("requests_open", "gauge", {"": batcher.num_open}),
            ("rows_waiting", "gauge", {"": batcher.num_waiting}),
        ]
        lines = []
        for name, kind, values in told:
            lines.append(f"# TYPE fairseq_peft_{name} {kind}")
            lines += [f"fairseq_peft_{name}{labels} {value}" for labels, value in values.items()]
        return "\n".join(lines) + "\n"
