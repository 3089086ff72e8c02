"""What a contestant of train_speed.py measures of its own training.

Needs torch and nothing else of others: it runs under fairseq's Python and under Hugging Face's."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
import time

import torch
from peak import peak_bytes

PARTS = ("forward", "backward", "optimizer", "data")


def parser(description: str) -> argparse.ArgumentParser:
    """The flags that train_speed.py gives to every contestant."""
    flags = argparse.ArgumentParser(description=description, allow_abbrev=False)
    flags.add_argument("--warmup", type=int, required=True, help="steps before the clock starts")
    flags.add_argument("--steps", type=int, required=True, help="steps on the clock")
    flags.add_argument("--started", type=float, required=True, help="time.time() at the start")
    flags.add_argument("--pad", type=int, required=True, help="token id of padding")
    flags.add_argument("--device", choices=("cpu", "cuda"), required=True)
    flags.add_argument("--split", action="store_true", help="time the parts of a step as well")
    return flags


def rows_hash(rows) -> str:
    """SHA-256 of the distinct rows (lists of token ids) in an order of their own."""
    texts = {" ".join(map(str, row)) for row in rows}
    return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()


class Meter:
    """Times ``steps`` steps after ``warmup`` steps that do not count.

    A step lasts from the end of the one before to its own end. Its parts are what ``wrap`` was told
    to time, and ``data``, from the end of the step before to ``begin``; what is left is ``other``.
    Without ``split`` no part is timed: on a GPU that would mean waiting for the device many times a
    step, and the step would no longer be the one that a user sees.
    """

    def __init__(self, flags):
        self.flags = flags
        self.startup = None
        self.count = 0
        self.end = None
        self.first = None
        self.cpu = self.cpu_first = 0.0
        self.spent = dict.fromkeys(PARTS, 0.0)
        self.batches = []  # token ids (B, T) of every step, read after training

    def now(self) -> float:
        if self.flags.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @property
    def counting(self) -> bool:
        return self.flags.warmup <= self.count < self.flags.warmup + self.flags.steps

    def wrap(self, owner, name: str, part: str) -> None:
        """Have the time of ``owner.name(...)`` count as ``part``."""
        if not self.flags.split:
            return
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args, **kwargs):
            if not self.counting:
                return function(*args, **kwargs)
            start = self.now()
            result = function(*args, **kwargs)
            self.spent[part] += self.now() - start
            return result

        setattr(owner, name, timed)

    def begin_step(self) -> None:
        """A batch is there, the step begins."""
        if self.startup is None:
            self.startup = time.time() - self.flags.started
        elif self.flags.split and self.counting:
            self.spent["data"] += self.now() - self.end

    def tokens(self, batch) -> None:
        """Take note of the step's token ids (B, T)."""
        self.batches.append(batch)

    def end_step(self) -> None:
        self.count += 1
        edge = self.count in (self.flags.warmup, self.flags.warmup + self.flags.steps)
        if edge or self.flags.split:
            self.end = self.now()
        if self.count == self.flags.warmup:
            self.first, self.cpu_first = self.end, time.process_time()
        elif edge:
            self.cpu = time.process_time() - self.cpu_first

    def report(self, model, **more) -> None:
        """Print everything as the last line of stdout."""
        flags = self.flags
        if self.count != flags.warmup + flags.steps or len(self.batches) != self.count:
            sys.exit(
                f"{self.count} steps with {len(self.batches)} batches were made, not "
                f"{flags.warmup} + {flags.steps}: this version of the library trains in another "
                "way than the benchmark knows."
            )
        seconds = self.end - self.first
        timed = self.batches[flags.warmup :]
        rows = [
            row[row != flags.pad].tolist()
            for batch in self.batches
            for row in batch.cpu()  # on a GPU, after the clock has stopped
        ]
        parts = {**self.spent, "other": seconds - sum(self.spent.values())}
        cuda = flags.device == "cuda"
        line = {
            "startup_s": self.startup,
            "steps": flags.steps,
            "seconds": seconds,
            "cpu_seconds": self.cpu,  # of all threads together
            "parts_s": parts if flags.split else None,
            "real_tokens": sum(int((batch != flags.pad).sum()) for batch in timed),
            "padded_tokens": sum(batch.numel() for batch in timed),
            "rows_hash": rows_hash(rows),
            "peak_rss_bytes": peak_bytes(),
            "peak_device_bytes": torch.cuda.max_memory_allocated() if cuda else None,
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__, **more},
        }
        print(json.dumps(line), flush=True)
