"""Freed memory stays with the process: counted in page faults, in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.end_to_end

PACKAGE = Path(__file__).resolve().parents[2] / "fairseq_peft" / "fairseq_fixes"
FAULTS = """
import resource, sys
import torch
if sys.argv[2] == "on":
    sys.path.insert(0, sys.argv[1])  # the file alone: the package's plugin would do it by itself
    import memory
kept = memory.keep_freed() if sys.argv[2] == "on" else None

def step():
    tensors = [torch.ones(10_000_000) for _ in range(3)]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(8):
    step()
before = faults()
for _ in range(5):
    step()
print(kept, faults() - before)
"""


def run(choice, **environment):
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS, str(PACKAGE), choice]
    out = subprocess.run(command, env={**plain, **environment}, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    kept, faults = out.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for glibc alone")
def test_a_step_reuses_what_the_last_one_freed():
    kept, faults = run("on")
    assert kept == "True" and faults < 2000  # of 5 x 3 x 9,766 pages
    assert run("off")[1] > 10 * max(faults, 100)


def test_the_environment_has_the_last_word():
    assert run("on", MALLOC_ARENA_MAX="2")[0] == "False"
