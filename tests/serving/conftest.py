"""A prepared folder with odd rows, a base, and runs on it, trained once for all tests here."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from helpers import PACKAGE, ROOT, TINY_FLAGS, train_flags
from prediction import FORMS, ODD, lines_of

import fairseq_peft


@pytest.fixture(scope="session")
def prepare(python):
    """``prepare(raw, dest, ...)``: a data folder made by ``fairseq-peft prepare-data``."""

    def run(raw, dest, *flags):
        words = [python, "-m", "fairseq_peft.cli", "prepare-data", raw, dest]
        words += ["--max-positions", 40, *flags]
        done = subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return dest

    return run


@pytest.fixture(scope="session")
def data(prepare, raw_folder, tmp_path_factory):
    """A prepared folder whose test split ends with odd rows."""
    folder = tmp_path_factory.mktemp("predict")
    shutil.copytree(raw_folder, folder / "raw")
    for name, more in (("review", ODD), ("label", ["bad"] * len(ODD))):
        with open(folder / "raw" / f"test.{name}", "ab") as file:
            file.write("".join(f"{line}\n" for line in more).encode())
    return prepare(folder / "raw", folder / "data", "--vocab-size", 56)


@pytest.fixture(scope="session")
def texts(data):
    """The rows of test as a user has them, before preparation."""
    texts = lines_of(data.parent / "raw" / "test.review")
    assert len(texts) == 21 + len(ODD)
    return texts


@pytest.fixture(scope="session")
def base(fairseq, data):
    done = fairseq(
        *("train", data / "input0", "--user-dir", PACKAGE, "--task", "masked_lm"),
        *("--criterion", "masked_lm", "--arch", "roberta_small", *TINY_FLAGS),
        *("--tokens-per-sample", 40, "--sample-break-mode", "none", "--batch-size", 8),
        *("--optimizer", "peft_adamw", "--lr", 1e-2, "--max-update", 20, "--num-workers", 0),
        *("--save-dir", data.parent / "base", "--no-epoch-checkpoints", "--cpu"),
        *("--disable-validation", "--log-format", "simple"),
    )
    assert done.returncode == 0, done.stderr
    return data.parent / "base" / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def train(fairseq, data, base):
    """``train("lora")``: the save directory of a run, trained once."""

    def run(name, data=data, **more):
        folder = base.parent.parent / f"run-{name}"
        if not folder.exists():
            own = {"lr": 3e-2, "max_epoch": 3, "from_scratch": None, **FORMS.get(name, {}), **more}
            flags = train_flags(data, folder, finetune_from_model=base, **own)
            done = fairseq("train", *flags)
            assert done.returncode == 0, done.stderr
        return folder

    return run


@pytest.fixture(scope="session")
def load(train, base):
    def run(name):
        own = None if name == "full" else base
        return fairseq_peft.Classifier.load(own, train(name) / "adapter")

    return run
