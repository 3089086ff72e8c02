"""The benchmarks are programs of a folder, not of a package: their tests find them here."""

import sys

from helpers import ROOT

sys.path.append(str(ROOT / "benchmarks"))
