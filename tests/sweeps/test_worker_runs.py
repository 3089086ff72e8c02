"""Runs of fairseq-train in the worker: the same result as a process of their own, and failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from helpers import ROOT, fairseq_command, train_flags
from workers import ENVIRON, children, cli, serving, until

pytest.importorskip("fairseq")
pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux"),
]

from runs import metrics, same, without_clocks  # noqa: E402


@pytest.fixture(scope="module")
def trainer():
    """A worker as ``fairseq-peft worker`` serves it: its address, its process."""
    pytest.importorskip("fairseq")
    with serving(lambda address: cli("worker", address), cwd=ROOT, env=ENVIRON) as served:
        yield served


def start(address, flags):
    words = cli("worker", address, "train", *flags)
    return subprocess.Popen(
        words, env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_run_is_the_same_bit_for_bit(trainer, data_folder, base_checkpoint, tmp_path):
    """As a process of its own, whatever its hashes; after another run, before it, and beside it."""
    settings = {
        "lora": {"arch": "roberta_small_lora", "seed": 1},
        "prefix": {"arch": "roberta_small_prefix", "seed": 2, "batch_size": 4},
    }

    def flags(name, folder):
        more = {"from_scratch": None, "finetune_from_model": base_checkpoint, "max_epoch": 2}
        return train_flags(data_folder, tmp_path / folder, **more, **settings[name])

    done = fairseq_command("train", *flags("lora", "own"), env={"PYTHONHASHSEED": "7"})
    assert done.returncode == 0, done.stderr
    for folder, name in [("1", "lora"), ("2", "prefix"), ("3", "lora"), ("4", "prefix")]:
        process = start(trainer[0], flags(name, folder))
        output = process.communicate(timeout=600)[0]
        assert process.returncode == 0 and "process of its own" not in output, output
    both = [start(trainer[0], flags(name, name)) for name in settings]
    for process in both:
        output = process.communicate(timeout=600)[0]
        assert process.returncode == 0 and "process of its own" not in output, output

    def equal(one, other):
        one, other = tmp_path / one, tmp_path / other
        assert same(one / "checkpoint_last.pt", other / "checkpoint_last.pt"), (one, other)
        assert same(one / "checkpoint_best.pt", other / "checkpoint_best.pt"), (one, other)
        assert without_clocks(metrics(one)) == without_clocks(metrics(other))

    for folder in ("1", "3", "lora"):
        equal("own", folder)
    for folder in ("4", "prefix"):
        equal("2", folder)
    assert without_clocks(metrics(tmp_path / "1")) != without_clocks(metrics(tmp_path / "2"))


def test_a_bad_run_fails_with_its_sentence(trainer, data_folder, tmp_path):
    more = {"from_scratch": None, "finetune_from_model": tmp_path / "missing.pt"}
    process = start(trainer[0], train_flags(data_folder, tmp_path / "run", **more))
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 1
    assert "missing.pt does not exist" in output and "Traceback" not in output


def test_a_killed_training_run_is_told_apart(trainer, data_folder, tmp_path):
    flags = train_flags(data_folder, tmp_path / "run", max_epoch=100000, no_save=True)
    process = start(trainer[0], flags)
    log = tmp_path / "run" / "metrics.jsonl"
    until(log.exists, 600)
    (run,) = children(children(trainer[1].pid)[0])
    os.kill(run, signal.SIGKILL)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 137
    assert "the run was ended by SIGKILL" in output


def test_without_a_worker_a_run_is_a_process_of_its_own(tmp_path):
    pytest.importorskip("fairseq")
    done = subprocess.run(
        cli("worker", tmp_path / "missing", "train", "--help"),
        env=ENVIRON,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "--arch" in done.stdout
    assert "no worker answers" in done.stderr and "is a process of its own" in done.stderr


def test_bad_addresses_and_programs_are_one_sentence(tmp_path):
    (tmp_path / "taken").write_text("")
    for words, message in [
        ([tmp_path / "taken"], "exists. Give another ADDRESS"),
        ([tmp_path / "no" / "worker"], "is not a folder"),
        ([tmp_path / ("x" * 100)], "too long for a socket"),
        ([tmp_path / "worker", "interactive", "x"], "interactive is not a program of the worker"),
    ]:
        done = subprocess.run(cli("worker", *words), env=ENVIRON, capture_output=True, text=True)
        assert done.returncode == 1 and message in done.stderr
        assert len(done.stderr.splitlines()) == 1


PLUGIN = """
import sys, warnings
warnings.simplefilter("ignore")
import fairseq_cli.train
before = set(sys.modules)
import fairseq_peft
new = {name.split(".")[0] for name in set(sys.modules) - before}
print("new:", *sorted(new - set(sys.stdlib_module_names)))
"""


@pytest.mark.skipif(sys.version_info < (3, 10), reason="sys.stdlib_module_names")
def test_the_plugin_imports_nothing_that_fairseq_has_not(fairseq):
    """But safetensors, which takes milliseconds: no sklearn, matplotlib or transformers."""
    done = fairseq("python", PLUGIN, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "new: fairseq_peft safetensors"
