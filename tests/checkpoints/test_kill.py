"""kill -9: the last checkpoint is whole, and going on ends with the bits of a run in one go."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from helpers import TINY_FLAGS, train_flags

pytest.importorskip("fairseq")
pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and reads /proc"),
]

EPOCHS = 4
#: How often things are killed, where it is said: scripts/test.sh kill.
KILLS = int(os.getenv("KILLS", "0"))

SCRIPT = """
import json, os, sys
sys.path[:0] = [{tests!r}]
import killing
os.chdir({folder!r})
with open("found.json", "w") as file:
    json.dump(killing.{call}, file)
"""


@pytest.fixture
def kill(fairseq, data_folder, base_checkpoint, tmp_path):
    """``kill("random_moments", ...)``: what that function of killing.py finds out about a run."""

    def call(function, *args, **more):
        flags = {"from_scratch": None, "finetune_from_model": base_checkpoint, "max_epoch": None}
        flags["valid_subset"] = "valid"
        words = train_flags(data_folder, None, lora_dropout=0.1, **flags, **more)
        call = f"{function}({words!r}, *{args!r})"
        tests = str(Path(__file__).parents[1] / "support")
        script = SCRIPT.format(tests=tests, folder=str(tmp_path), call=call)
        done = fairseq("python", script)
        assert done.returncode == 0, done.stderr[-5000:]
        return json.loads((tmp_path / "found.json").read_text())

    return call


def test_random_moments(kill):
    """Runs of four epochs, each killed and gone on with until it is done. Ten kills; as many as are
    enough to meet every part of a run in ``scripts/test.sh kill``."""
    found = kill("random_moments", EPOCHS, KILLS or 10, 5)
    assert found["kills"] == (KILLS or 10) and found["ends"] >= 1
    for before, epoch, logged in found["steps"]:
        # Nothing is lost; an epoch's line is written before its checkpoint.
        assert before <= epoch <= logged <= epoch + 1
    if KILLS:
        assert found["ends"] >= 2
        assert len({epoch for _, epoch, _ in found["steps"]} - {0, EPOCHS}) >= 2


@pytest.mark.skipif(not KILLS, reason="scripts/test.sh kill")
def test_a_sweep_at_random_moments(fairseq, data_folder, tmp_path):
    words = ["--data", data_folder, "--cells", "scratch/lora", "--rates", "SCRATCH=1e-3 1e-2"]
    words += ["--seeds", "1 2", "--epochs", EPOCHS, "--batch-size", 8, "--precision", "fp32"]
    words += ["--threads", 1, "--arch-args", " " + " ".join(TINY_FLAGS)]
    call = f"sweep_moments({list(map(str, words))!r}, {KILLS}, 3)"
    tests = str(Path(__file__).parents[1] / "support")
    done = fairseq("python", SCRIPT.format(tests=tests, folder=str(tmp_path), call=call))
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["killed"]) == KILLS and found["ends"], found


PLACES = [
    ("save", 1),
    ("copy", 1),
    ("copy", 2),
    *((p, n) for p in ("flush", "move", "moved") for n in (1, 3)),
]


#: A file for each epoch, and each the best so far: weights move too little to change a prediction,
#: and the latest of equals is the best.
EVERY_EPOCH = {"no_epoch_checkpoints": None, "lr": 1e-6}


def test_within_the_writes(kill):
    """A file for the epoch, copied to the best and to the last: three writes an epoch."""
    found = kill("within_writes", EPOCHS, PLACES, **EVERY_EPOCH)
    assert found[-1] == 2 and set(found[:-1]) == {1}, dict(zip(PLACES, found))


def test_negative_control_fairseqs_own_copy_is_no_checkpoint_when_killed(kill):
    (found,) = kill("within_writes", 2, [("copy", 2, True)], **EVERY_EPOCH)
    assert "checkpoint_last.pt cannot be read as a checkpoint" in found
