"""Programs in one process that take turns, each with module state of its own.

fairseq keeps a run's state in module globals: meters, the best score so far, the random numbers of
torch, numpy and Python, the stream it logs to, TensorBoard's writers. A ``Turn`` is a thread that
runs only while somebody waits in ``resume``, and has all of these to itself then. So fairseq's own
``main`` runs for each member as it is, and none sees anything of another.
"""

from __future__ import annotations

import collections
import logging
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TextIO

import numpy as np
import torch
from fairseq import checkpoint_utils
from fairseq.logging import metrics, progress_bar
from fairseq_cli import train

from fairseq_peft.errors import InputError

#: Functions of fairseq that keep a run's best score as attributes of their own.
_REMEMBERING = (checkpoint_utils.save_checkpoint, train.should_stop_early)
_METRICS = ("_aggregators", "_active_aggregators", "_active_aggregators_cnt")


class Turn:
    """``function()`` as a thread that pauses in ``ask``.

    Attributes:
        request: what it asks for while it pauses; None once it has ended.
        error: one line that says why it failed; None if it did not.
        seconds: what it has used of the process's time: its own turns, and its share of what was
            computed for it (``charge``).
    """

    def __init__(self, function: Callable[[], None], argv: list[str], log: TextIO):
        self.request = None
        self.error = None
        self.seconds = 0.0
        self._function = function
        self._log = log
        self._mine = _fresh(argv, log)
        self._since = None
        self._failed = None
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def resume(self, error: Exception | None = None) -> None:
        """Let it run until it asks for something, or ends; with ``error``, what it asked for last
        has failed."""
        self._failed, self.request = error, None
        others = _swap(self._mine)
        self._since = time.perf_counter()
        try:
            self._go.release()
            self._paused.acquire()
        finally:
            self.charge(time.perf_counter() - self._since)
            self._since = None
            self._mine = _swap(others)

    def ask(self, request) -> None:
        """Within the thread: pause, until ``resume``.

        Raises:
            Exception: the one that ``resume`` was given.
        """
        self.request = request
        self._paused.release()
        self._go.acquire()
        if self._failed is not None:
            raise self._failed

    def charge(self, seconds: float) -> None:
        """Count seconds that were spent on it."""
        self.seconds += seconds

    def perf_counter(self) -> float:
        """A clock that stands still while others have their turns."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self.seconds + running

    def _run(self):
        self._go.acquire()
        try:
            self._function()
        except InputError as error:
            self.error = str(error)
            self._log.write(f"fairseq-train: error: {error}\n")
        except BaseException as error:
            self.error = f"{type(error).__name__}: {error}"
            traceback.print_exc(file=self._log)
        finally:
            try:
                progress_bar._close_writers()
                self._log.flush()
            except Exception as error:  # of a full disk, for one
                self.error = self.error or f"{type(error).__name__}: {error}"
            finally:
                self._paused.release()


def _fresh(argv, log) -> dict:
    """The state of a process that has just started."""
    meters = metrics.MetersDict()
    return {
        "metrics": [
            collections.OrderedDict(default=meters),
            collections.OrderedDict(default=meters),
            collections.defaultdict(int, default=1),
        ],
        "remembered": [{} for _ in _REMEMBERING],
        "writers": {},
        "random": _random_state(),
        "argv": [train.__file__, *argv],
        "log": (log, log, log),
    }


def _swap(new: dict) -> dict:
    """Put ``new`` in place; returns what was there."""
    handler = _handler()
    old = {
        "metrics": [getattr(metrics, name) for name in _METRICS],
        "remembered": [dict(vars(function)) for function in _REMEMBERING],
        "writers": progress_bar._tensorboard_writers,
        "random": _random_state(),
        "argv": sys.argv,
        "log": (sys.stdout, sys.stderr, handler and handler.stream),
    }
    for name, value in zip(_METRICS, new["metrics"]):
        setattr(metrics, name, value)
    for function, value in zip(_REMEMBERING, new["remembered"]):
        vars(function).clear()
        vars(function).update(value)
    progress_bar._tensorboard_writers = new["writers"]
    _set_random_state(new["random"])
    sys.argv = new["argv"]
    sys.stdout, sys.stderr, stream = new["log"]
    if handler:
        handler.setStream(stream)
    return old


def _handler():
    """The root logger's handler that writes to a stream."""
    handlers = logging.getLogger().handlers
    return next((h for h in handlers if type(h) is logging.StreamHandler), None)


def _random_state():
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _set_random_state(state):
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    if state[3] is not None:
        torch.cuda.set_rng_state(state[3])
