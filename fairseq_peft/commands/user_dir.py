"""Print the folder of the package, for `--user-dir "$(fairseq-peft user-dir)"`.

fairseq finds `--user-dir fairseq_peft` by name only under the current directory or beside itself,
so not from another directory where the package is an editable install.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    sys.stdout.write(f"{Path(__file__).resolve().parent.parent}\n")
    return 0
