"""Without fairseq the package stays light: the report and ``--help`` must not wait for torch."""

import subprocess
import sys
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
#: A module takes about a millisecond, so their number stands for the time, on any machine.
MOST_MODULES = 250

PROGRAMS = {
    "import fairseq_peft": "import fairseq_peft",
    "fairseq-peft --help": "from fairseq_peft.cli import main; main(['--help'])",
    "fairseq-peft --version": "from fairseq_peft.cli import main; main(['--version'])",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_nothing_heavy_is_imported(program):
    code = (
        "import sys\n"
        f"try:\n    {program}\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print('heavy:', *[name for name in {HEAVY!r} if name in sys.modules])\n"
        "print(len(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    *_, heavy, num_modules = done.stdout.splitlines()
    assert heavy.strip() == "heavy:" and int(num_modules) < MOST_MODULES
