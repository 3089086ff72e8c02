"""Runs from a base of their own, in a test's folder."""

from __future__ import annotations

import shutil

import pytest
from helpers import train_flags
from runs import validate_flags


@pytest.fixture
def base(base_checkpoint, tmp_path):
    (tmp_path / "base").mkdir()
    return shutil.copy(base_checkpoint, tmp_path / "base" / "model.pt")


@pytest.fixture
def train(fairseq, data_folder, base, tmp_path):
    """``train("run", "lora", ...)``: a run of one epoch; returns its save dir, or its only line of
    standard error with ``refused=True``."""

    def run(folder, peft="lora", refused=False, **more):
        given = {"from_scratch": None, "finetune_from_model": base, "peft": peft, **more}
        flags = train_flags(data_folder, tmp_path / folder, "roberta_small", **given)
        done = fairseq("train", *flags)
        if not refused:
            assert done.returncode == 0, done.stderr
            run.log = done.stdout + done.stderr
            return tmp_path / folder
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("fairseq_peft: error: ")
        return line

    return run


@pytest.fixture
def validate(fairseq, data_folder):
    """``validate(checkpoint, ...)``: fairseq-validate on valid."""

    def run(checkpoint, *more):
        return fairseq("validate", *validate_flags(data_folder, checkpoint, "valid"), *more)

    return run
