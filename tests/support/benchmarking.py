"""Running a program of benchmarks/ as a user does."""

from __future__ import annotations

import os
import subprocess
import sys

from helpers import ROOT

FOLDER = ROOT / "benchmarks"

#: A model so small that only imports take time.
TINY_MODEL = [
    *("--layers", "2", "--embed-dim", "16", "--ffn-dim", "24", "--heads", "4"),
    *("--max-positions", "40"),
]


def benchmark(program: str, out, *flags, python=None, **env) -> subprocess.CompletedProcess:
    """``program --out OUT --repeats 1 --threads 1 FLAGS`` of a tiny model, without shared data, by
    ``python`` or a process with imports of its own."""
    return subprocess.run(
        [
            *(python or sys.executable, str(FOLDER / program), "--out", str(out)),
            *("--repeats", "1", "--threads", "1", *TINY_MODEL, *flags),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "FAIRSEQ_PEFT_SHARED": "", "OMP_NUM_THREADS": "1", **env},
        cwd=FOLDER.parent,
    )
