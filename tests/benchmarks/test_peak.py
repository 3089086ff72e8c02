"""A process's peak memory is its own, not that of the one which started it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HELD = 900_000_000  # by the parent
TOLD = {
    "benchmarks": "from peak import peak_bytes as told",
    "runs": "from fairseq_peft.runs.log import peak_memory_bytes as told",
}


@pytest.mark.parametrize("place", TOLD)
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the figure is Linux's")
def test_what_the_parent_held_does_not_count(place):
    child = f"{TOLD[place]}; held = bytearray(50_000_000); print(told())"
    parent = (
        f"import subprocess, sys; held = bytearray({HELD}); held[::4096] = held[::4096]; "
        f"print(subprocess.check_output([sys.executable, '-c', {child!r}], text=True))"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    told = subprocess.check_output(
        [sys.executable, "-c", parent], text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert 50_000_000 < int(told) < HELD
