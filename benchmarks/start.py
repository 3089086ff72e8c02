"""What starting costs: processor seconds of programs that do nothing else, in turns.

python benchmarks/start.py --repeats 5

Processor seconds, not seconds: other programs on the machine hardly change them.
"""

import argparse
import os
import statistics
import subprocess
import sys

PYTHON = sys.executable
PROGRAMS = {
    "python -c pass": [PYTHON, "-c", "pass"],
    "import fairseq_peft": [PYTHON, "-c", "import fairseq_peft"],
    "fairseq-peft --help": [PYTHON, "-m", "fairseq_peft.cli", "--help"],
    "import torch": [PYTHON, "-c", "import torch"],
    "import fairseq": [PYTHON, "-c", "import fairseq"],
    "fairseq-train --user-dir fairseq_peft --help": [
        *(PYTHON, "-m", "fairseq_cli.train", "--user-dir", "fairseq_peft", "--help")
    ],
    "python -m fairseq_peft.train --help": [PYTHON, "-m", "fairseq_peft.train", "--help"],
    "from fairseq_peft import Classifier": [PYTHON, "-c", "from fairseq_peft import Classifier"],
}


def processor_s(command: list[str]) -> float:
    """Of one process with all that it starts, in user and system mode."""
    before = os.times()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = os.times()
    return (
        after.children_user + after.children_system - before.children_user - before.children_system
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="times each program runs (5)")
    repeats = parser.parse_args().repeats
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed is compiled
    for command in PROGRAMS.values():
        processor_s(command)
    seconds = {name: [] for name in PROGRAMS}
    for _ in range(repeats):
        for name, command in PROGRAMS.items():
            seconds[name].append(processor_s(command))
    print("| program | processor seconds |\n|---|---:|")
    for name, found in seconds.items():
        middle = statistics.median(found)
        print(f"| `{name}` | {middle:.2f} ({min(found):.2f}-{max(found):.2f}) |")


if __name__ == "__main__":
    main()
