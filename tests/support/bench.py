"""A run of fairseq-train that would work, to be spoiled in one place; what a refusal looks like."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
from helpers import PACKAGE, random_rows, train_flags, write_data

from fairseq_peft.runs import lock

LABELS = ["bad", "good"]


class Bench:
    """A run that would work, to be spoiled in one place."""

    def __init__(self, fairseq, data, base, folder):
        self.fairseq, self.data, self.base, self.folder = fairseq, data, base, folder
        self.save_dir = folder / "run"

    def train(self, data=None, arch="roberta_small_lora", **more):
        flags = {"from_scratch": None, "finetune_from_model": self.base, **more}
        return self.fairseq("train", *train_flags(data or self.data, self.save_dir, arch, **flags))

    def own_data(self):
        """A copy of the data that a case may spoil."""
        return Path(shutil.copytree(self.data, self.folder / "data"))

    def rows(self, change, labels=LABELS, **more):
        """A folder with rows changed by ``change(rows)``."""
        rows = random_rows()
        change(rows)
        return write_data(self.folder / "data", rows, labels, **more)

    def spoiled_base(self, change):
        """A copy of the base whose state was changed by ``change(state)``."""
        state = torch.load(self.base, weights_only=True)
        change(state)
        torch.save(state, self.folder / "base.pt")
        return self.folder / "base.pt"

    def cut(self, path, name="cut.pt", share=0.5):
        content = Path(path).read_bytes()
        (self.folder / name).write_bytes(content[: int(len(content) * share)])
        return self.folder / name

    def validate(self, data, checkpoint, task="sentence_classification"):
        words = [data, "--user-dir", PACKAGE, "--path", checkpoint]
        words += ["--batch-size", 8, "--num-workers", 0, "--cpu"]
        return self.fairseq("validate", *words, *(["--task", task] if task else []))


def left_behind(save_dir):
    """Names of what is there, but for the lock: who took its file away while another process waits
    for it would let two train."""
    return sorted(path.name for path in save_dir.rglob("*") if path.name != lock.TRAINING)


def refused(bench, done, *parts):
    """One sentence of ours with ``parts`` in it, and nothing left behind."""
    assert done.returncode == 1, done.stdout[-2000:]
    lines = done.stderr.splitlines()
    ours = [line for line in lines if line.startswith("fairseq_peft: error: ")]
    assert len(ours) == 1 and "Traceback" not in done.stderr, done.stderr
    assert ours == lines, f"more than our line on stderr: {done.stderr}"
    for part in parts:
        assert re.search(part, ours[0]), f"{part!r} is not in: {ours[0]}"
    assert ours[0].rstrip().endswith("."), ours[0]
    left = left_behind(bench.save_dir) if bench.save_dir.is_dir() else []
    assert left == [], f"left behind: {left}"
    assert "begin training epoch" not in done.stdout
