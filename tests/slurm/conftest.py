"""The Slurm of the tests."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from slurm_cluster import Cluster, missing


@pytest.fixture(scope="module")
def cluster():
    why = missing()
    if why:
        pytest.skip(why)
    # Of a short name: a socket is in it.
    with tempfile.TemporaryDirectory(prefix="slurm.") as folder, Cluster(Path(folder)) as started:
        yield started
