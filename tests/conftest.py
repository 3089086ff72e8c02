"""Fixtures: a tiny model, a batch, small data folders."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import random
import signal
import sys
from collections import Counter

import pytest
from fork_server import ForkServer
from helpers import PACKAGE, TINY_FLAGS, random_rows, write_data

# Numbers are compared to the last bit, on every processor: what --precision auto means is no matter
# of the machine here (tests/test_auto_precision.py has its own say).
os.environ["FAIRSEQ_PEFT_PRECISION"] = "fp32"
ROOT_LEVEL = logging.getLogger().level
# Started in the background, as in CI, pytest inherits an ignored SIGINT, and so would every process
# of the tests that interrupt one.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_make_parametrize_id(val, argname):
    """Bytes are named by their argument: packed ones hold the time, and workers must agree."""
    return argname if isinstance(val, bytes) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Mark what ``test.sh fast`` leaves out; among several workers, long files come first."""
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid} has an address in its name. Give it an id.")
        if "fork_server" in item.fixturenames:
            item.add_marker("end_to_end")
        if hasattr(item, "callspec") and item.callspec.params.get("given"):
            item.add_marker("knobs")
    if hasattr(config, "workerinput"):
        num_tests, num_slow = Counter(), Counter()
        for item in items:
            num_tests[item.path] += 1
            num_slow[item.path] += item.get_closest_marker("end_to_end") is not None
        items.sort(key=lambda item: (-num_slow[item.path], -num_tests[item.path], item.path))


def pytest_collection_finish():
    """What is imported by now stays: the collector of garbage need not look at it ever again."""
    if "torch" in sys.modules:
        importlib.import_module("quick_seeds")
    gc.freeze()


@pytest.fixture(autouse=True)
def logs_as_at_first():
    """Commands that are called in this process set how much is logged: no test hears of another."""
    log_as_at_first()
    yield
    log_as_at_first()


def log_as_at_first():
    logging.disable(logging.NOTSET)
    logging.getLogger().setLevel(ROOT_LEVEL)
    for name, logger in list(logging.root.manager.loggerDict.items()):
        # setLevel goes through all loggers: it is called where it changes something.
        if name.startswith("fairseq") and getattr(logger, "level", logging.NOTSET):
            logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def meters_as_at_first():
    """fairseq's meters belong to the process: no test counts the rows of another."""
    yield
    if "fairseq.logging.metrics" in sys.modules:
        sys.modules["fairseq.logging.metrics"].reset()


@pytest.fixture(scope="session")
def dictionary():
    """30 words, with fairseq's specials and <mask> 35 rows."""
    fairseq = pytest.importorskip("fairseq")
    words = fairseq.data.Dictionary()
    for i in range(30):
        words.add_symbol(f"w{i}")
    words.add_symbol("<mask>")
    return words


@pytest.fixture
def build(dictionary):
    """``build("lora", lora_rank=4)``: a tiny RoBERTa with a head of two classes, in eval mode."""
    from families import Roberta

    return Roberta(dictionary).build


@pytest.fixture
def batch(dictionary):
    """(4, 12) token ids with <s>, </s> and padding at the right."""
    import torch

    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(4, len(dictionary) - 1, (4, 12), generator=generator)
    tokens[:, 0] = dictionary.bos()
    for row, length in zip(tokens, (12, 9, 5, 3)):
        row[length - 1] = dictionary.eos()
        row[length:] = dictionary.pad()
    return tokens


@pytest.fixture
def logits():
    """``logits(model, tokens)``: class scores (B, 2), without gradients."""
    import torch

    def compute(model, tokens):
        with torch.no_grad():
            return model(tokens, features_only=True, classification_head_name="head")[0]

    return compute


@pytest.fixture(scope="session")
def raw_folder(tmp_path_factory):
    """{train,valid,test}.{review,label}: 67, 21 and 21 reviews whose class is told by one word."""
    folder = tmp_path_factory.mktemp("raw")
    rng = random.Random(3)
    neutral = [f"mot{i}" for i in range(40)]
    signal = {"bad": ["nul", "triste", "fade"], "good": ["beau", "vif", "fort"]}
    for split, rows in (("train", 67), ("valid", 21), ("test", 21)):
        texts, labels = [], []
        for row in range(rows):
            label = ("bad", "good")[row % 2]
            words = rng.choices(neutral, k=rng.randint(3, 30)) + rng.choices(signal[label], k=3)
            rng.shuffle(words)
            texts.append(" ".join(words))
            labels.append(label)
        (folder / f"{split}.review").write_text("\n".join(texts) + "\n")
        (folder / f"{split}.label").write_text("\n".join(labels) + "\n")
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """A binarised folder with two classes; valid and test have 21 rows each, no multiple of a
    batch."""
    pytest.importorskip("fairseq")
    return write_data(tmp_path_factory.mktemp("data") / "tiny", random_rows(), ["bad", "good"])


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory):
    pytest.importorskip("fairseq")
    server = ForkServer(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def fairseq(fork_server):
    """``fairseq("train", DATA, ...)``: a command of fairseq in a fresh process, without the wait
    for imports."""
    return fork_server.run


@pytest.fixture(scope="session")
def python(fork_server):
    """What stands in for Python, in tests and as a script's PYTHON, without the wait for
    imports."""
    return fork_server.python()


@pytest.fixture(scope="session")
def base_checkpoint(fairseq, data_folder, tmp_path_factory):
    """A masked language model of the tiny sizes, trained for 20 updates by fairseq's own task."""
    folder = tmp_path_factory.mktemp("base")
    done = fairseq(
        *("train", data_folder / "input0", "--user-dir", PACKAGE, "--task", "masked_lm"),
        *("--criterion", "masked_lm", "--arch", "roberta_small", *TINY_FLAGS),
        *("--tokens-per-sample", 40, "--sample-break-mode", "none", "--batch-size", 8),
        *("--optimizer", "peft_adamw", "--lr", 1e-2, "--max-update", 20, "--num-workers", 0),
        *("--save-dir", folder, "--no-epoch-checkpoints", "--log-format", "simple", "--cpu"),
    )
    assert done.returncode == 0, done.stderr
    return folder / "checkpoint_last.pt"
