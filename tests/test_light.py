"""Without fairseq the package stays light: the report and ``--help`` must not wait for torch."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "torch",
    "fairseq",
    "numpy",
    "matplotlib",
    "sklearn",
    "scipy",
    "transformers",
    "tensorboard",
)
LIMIT_S = 0.5

PROGRAMS = {
    "import fairseq_peft": "import fairseq_peft",
    "fairseq-peft --help": "from fairseq_peft.cli import main; main(['--help'])",
    "fairseq-peft --version": "from fairseq_peft.cli import main; main(['--version'])",
}


def run_python(program):
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60
    )


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_nothing_heavy_is_imported(program):
    code = (
        "import sys\n"
        f"try:\n    {program}\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print('heavy:', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "heavy:"


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_it_takes_less_than_half_a_second(program):
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        assert run_python(program).returncode == 0
        best = min(best, time.perf_counter() - started)
        if best < LIMIT_S:
            return
    raise AssertionError(f"best of 3: {best:.2f} s, expected less than {LIMIT_S} s")
