"""A disk that is full, and folders that are read-only: one sentence, and nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from helpers import train_flags

pytest.importorskip("fairseq")
pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's mount, capabilities"),
]

from fairseq_peft.adapters import folder as adapter_folder  # noqa: E402
from fairseq_peft.checkpoints import slim  # noqa: E402
from fairseq_peft.runs import predictions  # noqa: E402

#: KiB: where a run has no room for its plan, its adapter folder, its first and last checkpoint.
SIZES = [int(size) for size in os.getenv("DISK_SIZES", "16 100").split()]

AS_ANY_USER = """
import sys
sys.path[:0] = [{support!r}]
from unprivileged import give_up_rights
give_up_rights()
import logging
from fairseq_peft.cli import main
sys.exit(main({words!r}))
"""


@pytest.fixture
def disk(tmp_path):
    """``disk(size)``: a folder that is a disk of so many KiB; another size makes it larger."""
    from unprivileged import small_disk

    folder, mounted = tmp_path / "disk", []

    def sized(size):
        if not mounted:
            try:
                mounted.append(small_disk(folder, f"{size}k"))
                mounted[0].__enter__()
            except OSError as error:
                mounted.clear()
                pytest.skip(f"no disk of its own can be mounted here: {error}")
        else:
            words = ["mount", "-o", f"remount,size={size}k", str(folder)]
            subprocess.run(words, check=True)
        return folder

    yield sized
    for each in mounted:
        each.__exit__(None, None, None)


def whole(folder):
    """Every file below ``folder`` is one that its reader takes."""
    for path in folder.rglob("*"):
        if path.suffix == ".pt":
            slim.read(str(path))
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            assert all(json.loads(line) for line in path.read_text().splitlines())
        elif path.suffix == ".npz":
            predictions.read(path)
        elif path.name == "adapter":
            adapter_folder.read(path)
        assert ".tmp" not in path.name and ".new" not in path.name, path


@pytest.mark.parametrize("size", SIZES)
def test_training_on_a_full_disk(fairseq, data_folder, base_checkpoint, disk, size):
    """It ends with a sentence; where there is room, the same line goes on to the end."""
    flags = {"from_scratch": None, "finetune_from_model": base_checkpoint, "max_epoch": 2}
    words = train_flags(data_folder, disk(size) / "run", **flags)
    done = fairseq("train", *words)
    lines = done.stderr.strip().splitlines()
    print(size, done.returncode, lines[-1:], len(lines))
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    assert "No space left on device" in lines[0] and lines[0].startswith("fairseq_peft: error: ")
    whole(disk(size))
    disk(1000)
    done = fairseq("train", *words)
    assert done.returncode == 0, done.stderr
    whole(disk(1000))
