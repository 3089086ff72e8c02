"""Where the library of the parity tests is installed."""

from __future__ import annotations

import os
import subprocess

import pytest


@pytest.fixture(scope="session")
def packages():
    """The site-packages folder of the library's environment."""
    python = os.environ.get("FAIRSEQ_PEFT_PEFT_PYTHON")
    if not python:
        pytest.skip("FAIRSEQ_PEFT_PEFT_PYTHON is not set: scripts/test.sh parity sets it up")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return subprocess.check_output([python, "-c", code], text=True).strip()
