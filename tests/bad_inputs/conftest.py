"""A run to be spoiled, and one that was trained."""

from __future__ import annotations

import pytest
from helpers import train_flags


@pytest.fixture
def bench(fairseq, data_folder, base_checkpoint, tmp_path):
    from bench import Bench

    return Bench(fairseq, data_folder, base_checkpoint, tmp_path)


@pytest.fixture(scope="session")
def trained(fairseq, data_folder, base_checkpoint, tmp_path_factory):
    """The last checkpoint of a LoRA run on the two classes."""
    folder = tmp_path_factory.mktemp("trained")
    flags = {"from_scratch": None, "finetune_from_model": base_checkpoint}
    done = fairseq("train", *train_flags(data_folder, folder, **flags))
    assert done.returncode == 0, done.stderr
    return folder / "checkpoint_last.pt"
