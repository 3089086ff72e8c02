"""A copy of the project for scripts to change."""

from __future__ import annotations

import shutil

import pytest
from helpers import ROOT


@pytest.fixture
def project(tmp_path):
    """A copy of what scripts need, so that a test sees whatever a script changes."""
    copy = tmp_path / "project"
    copy.mkdir()
    for name in ("scripts", "fairseq_peft", "experiments"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("constraints.txt", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    (copy / "data-bin").mkdir()
    return copy
