"""Both sides are the same system: without dropout, five steps of fairseq's trainer and of Hugging
Face's have the same losses and leave the same weights; and a whole run there is a row of the same
report.

`scripts/test.sh parity` sets up what this needs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import hf_data
import pytest
import torch
from comparison import STEPS_TOLERANCE
from helpers import ROOT, TINY_FLAGS
from safetensors.torch import load_file

from fairseq_peft import cli
from fairseq_peft.checkpoints import slim
from fairseq_peft.hf import weights
from fairseq_peft.hf.base_model import HEAD

pytestmark = pytest.mark.parity

NUM_STEPS = 5
LOSS_TOLERANCE = 1e-4
METHODS = ("full", "lora")
STEPS = f"--max-update {NUM_STEPS} --log-interval 1 --dropout 0 --attention-dropout 0".split()


@pytest.fixture(scope="module")
def place(packages, tmp_path_factory):
    """A folder with base/, demo/ and converted/, where ``script`` runs."""
    folder = tmp_path_factory.mktemp("steps")
    base, _ = hf_data.write(folder)
    assert cli.main(["to-hf", str(base / "model.pt"), str(folder / "converted"), "--no-check"]) == 0
    return folder


def script(place, name, packages, *flags, **knobs):
    """Run scripts/NAME; the log of the run it made."""
    given = {
        "DATA": place / "demo",
        "RUNS": place / "runs",
        "BATCH_SIZE": 8,
        "EPOCHS": 1,
        "WARMUP": 12,  # one update
        "LR": 1e-2,
        "THREADS": 1,
        "ARCH_ARGS": " ".join(TINY_FLAGS),
        "HF_PACKAGES": packages,
        "PYTHON": sys.executable,
        **knobs,
    }
    environment = {**os.environ, **{key: str(value) for key, value in given.items()}}
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / name), *(["--", *flags] if flags else [])],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def run_of(place, label):
    return place / "runs" / "demo" / "pretrained" / label / "seed1"


def losses(run):
    """The loss of each step, from either side's log."""
    found = {}
    for line in (run / "train.log").read_text().splitlines():
        step = re.search(r'"num_updates": "?(\d+)', line)
        loss = re.search(r'"loss": "?([0-9.]+)', line)
        if step and loss:
            found[int(step[1])] = float(loss[1])
    assert list(found) == list(range(1, NUM_STEPS + 1))
    return torch.tensor(list(found.values()))


@pytest.fixture(scope="module", params=METHODS)
def sides(request, place, packages):
    """The folders of fairseq's run and of Hugging Face's, five steps each."""
    method = request.param
    base = {"METHOD": method, "SUBSETS": "valid"}
    script(
        place,
        "finetune.sh",
        packages,
        *(*STEPS, "--log-format", "json"),
        BASE=place / "base" / "model.pt",
        **base,
    )
    script(place, "finetune_hf.sh", packages, *STEPS, HF_BASE=place / "converted", **base)
    return method, run_of(place, method), run_of(place, f"hf-{method}")


def test_the_losses_are_the_same(sides):
    method, ours, theirs = sides
    difference = (losses(ours) - losses(theirs)).abs().max().item()
    print(f"{method}: {difference:.1e}")
    assert difference <= LOSS_TOLERANCE


def test_the_weights_are_the_same(sides, place, tmp_path):
    """What five steps have made of the weights; fairseq's of a method by way of its folder."""
    method, ours, theirs = sides
    if method == "full":
        state = slim.read(str(ours / "checkpoint_best.pt"))["model"]
        found = weights.convert_to_hf(state, HEAD)
        expected = load_file(theirs / "checkpoint_best" / "model.safetensors")
        start = load_file(place / "converted" / "model.safetensors")
    else:
        base = str(place / "base" / "model.pt")
        out = str(tmp_path / "peft")
        assert cli.main(["export", str(ours / "adapter"), out, "--base", base]) == 0
        found = load_file(tmp_path / "peft" / "adapter_model.safetensors")
        expected = load_file(theirs / "checkpoint_best" / "adapter_model.safetensors")
        start = {name: torch.zeros_like(t) for name, t in found.items() if "lora_B" in name}
    assert found.keys() == expected.keys()
    # What a key's bias adds to the scores of a query is the same for every key: its gradient is
    # zero but for rounding, which AdamW makes a step of.
    compared = [name for name in found if not name.endswith("attention.self.key.bias")]
    assert len(compared) >= len(found) - 2
    difference = max((found[n] - expected[n]).abs().max().item() for n in compared)
    print(f"{method}: {difference:.1e}")
    assert difference <= STEPS_TOLERANCE
    assert (theirs / "checkpoint_best" / "tokenizer.json").is_file()
    moved = [name for name in start if name in found and (found[name] != start[name]).any()]
    assert len(moved) >= 4  # they have trained


def test_another_start_is_seen(sides, place, packages):
    """The comparison fails where only the head and LoRA's A are others."""
    method, ours, _ = sides
    script(
        place,
        "finetune_hf.sh",
        packages,
        *(*STEPS, "--draw", "hf"),
        HF_BASE=place / "converted",
        METHOD=method,
        SUBSETS="valid",
        LABEL=f"drawn-{method}",
    )
    drawn = run_of(place, f"drawn-{method}")
    assert (losses(ours) - losses(drawn)).abs().max() > 10 * LOSS_TOLERANCE


def test_a_run_is_a_row_of_the_report(place, packages, tmp_path):
    """From a checkpoint of fairseq's to a report of both sides, with dropout and two epochs."""
    runs = {"RUNS": tmp_path / "runs", "METHOD": "lora", "EPOCHS": 2, "LR": 1e-2}
    base = place / "base" / "model.pt"
    script(place, "finetune.sh", packages, BASE=base, **runs)
    folder = tmp_path / "runs" / "demo" / "pretrained"
    interrupted = folder / "hf-lora" / "seed1"
    interrupted.mkdir(parents=True)
    (interrupted / "metrics.jsonl").write_text('{"epoch": 3}\n')
    script(place, "finetune_hf.sh", packages, BASE=base, **runs)
    ours, theirs = (
        json.loads((folder / label / "seed1" / "result.json").read_text())
        for label in ("lora", "hf-lora")
    )
    for key in ("rows", "labels", "method_config", "hyperparameters", "base"):
        assert ours[key] == theirs[key], key
    for key in ("trainable_parameters", "method_parameters", "head_parameters", "task_bytes"):
        assert ours[key] == theirs[key], key
    assert [line["epoch"] for line in theirs["curve"]] == [1, 2]
    best = max((line["valid_accuracy"], line["epoch"]) for line in theirs["curve"])[1]
    assert theirs["best_epoch"] == best and theirs["test_accuracy"] is not None
    left = {path.name for path in (folder / "hf-lora" / "seed1").iterdir()}
    kept = {"run.json", "metrics.jsonl", "predictions.npz", "checkpoint_best", "train.log"}
    assert kept < left
    assert "base" not in left
    assert any("tfevents" in name and not name.endswith(".hparams") for name in left)

    again = script(place, "finetune_hf.sh", packages, BASE=base, **runs)
    assert (again.stdout + again.stderr).endswith("is done.\n")
    assert cli.main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0
    rows = json.loads((tmp_path / "report" / "report.json").read_text())
    assert {row["method"] for row in rows} == {"lora", "hf-lora"}
