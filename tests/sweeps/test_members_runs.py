"""Runs of fairseq-train as members of one process: the same results and files as by themselves."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess

import pytest
import torch
from helpers import ROOT, TINY_FLAGS, TOLERANCE, script, train_flags

from fairseq_peft.runs import predictions

pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end

DROPOUT = {"dropout": 0.1, "attention_dropout": 0.1}
SCHEDULE = {"lr_scheduler": "polynomial_decay", "total_num_update": 18, "warmup_updates": 3}
OFF = {"dropout": 0, "attention_dropout": 0, "pooler_dropout": 0}


def flags(data, base, folder, **more):
    more = {"from_scratch": None, "finetune_from_model": base, "clip_norm": 1.0, **SCHEDULE, **more}
    return train_flags(data, folder, **more)


@pytest.fixture
def sweep(python, tmp_path):
    """``sweep(commands, ...)``: ``fairseq-peft sweep-members``."""

    def run(commands, *options):
        file = tmp_path / "members.txt"
        file.write_text("".join(shlex.join(map(str, words)) + "\n" for words in commands))
        words = [python, "-m", "fairseq_peft.cli", "sweep-members", str(file), *options]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)

    return run


def trained(folder):
    state = torch.load(folder / "checkpoint_last.pt", weights_only=False)
    return state, {k: v for k, v in state["model"].items() if v.is_floating_point()}


def difference(one, other):
    assert one.keys() == other.keys()
    return max((one[key] - other[key]).abs().max().item() for key in one)


def curve(folder):
    """What metrics.jsonl says but for clocks and memory."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("peak_memory_bytes")
        for part in (line["train"], *line["subsets"].values()):
            for name in ("seconds", "tokens_per_second"):
                part.pop(name, None)
    return lines


MEMBERS = [
    {"seed": 1, "lr": 1e-2, "lora_rank": 4, "pooler": "mean", **DROPOUT},
    {"seed": 2, "lr": 2e-2, "lora_rank": 2, "lora_lr_ratio": 4, "pooler": "max", **DROPOUT},
    {"seed": 2, "lr": 5e-3, "lora_rank": 4, "max_epoch": 1, **DROPOUT},
]


@pytest.fixture(scope="module")
def alone(fairseq, data_folder, base_checkpoint, tmp_path_factory):
    """The folders of the same runs, each by its own fairseq-train."""
    folders = []
    for number, more in enumerate(MEMBERS):
        folder = tmp_path_factory.mktemp("alone") / f"m{number}"
        words = flags(data_folder, base_checkpoint, folder, **{"max_epoch": 2, **more})
        done = fairseq("train", *words)
        assert done.returncode == 0, done.stderr
        folders.append(folder)
    return folders


@pytest.mark.parametrize("together", ["auto", "always"])
def test_members_leave_what_runs_by_themselves_leave(
    sweep, alone, data_folder, base_checkpoint, tmp_path, together
):
    """With dropout, too: each member draws what it would draw. Bit for bit where its passes are its
    own, within rounding where they are joint."""
    commands = [
        flags(data_folder, base_checkpoint, tmp_path / f"m{n}", **{"max_epoch": 2, **more})
        for n, more in enumerate(MEMBERS)
    ]
    done = sweep(commands, "--together", together)
    assert done.returncode == 0, done.stderr
    bound = 0 if together == "auto" else TOLERANCE["fp32"]
    for number, own in enumerate(alone):
        folder = tmp_path / f"m{number}"
        state, tensors = trained(folder)
        own_state, own_tensors = trained(own)
        assert difference(tensors, own_tensors) <= bound
        assert state["extra_state"]["best"] == own_state["extra_state"]["best"]
        history = state["optimizer_history"][-1]
        assert history["num_updates"] == own_state["optimizer_history"][-1]["num_updates"]
        names = {path.name for path in folder.iterdir() if "tfevents" not in path.name}
        assert names == {p.name for p in own.iterdir() if "tfevents" not in p.name} | {"train.log"}
        assert len(list(folder.glob("*tfevents*"))) == 1
        if together == "auto":
            assert curve(folder) == curve(own)
            for path in (own / predictions.FOLDER).iterdir():
                assert path.read_bytes() == (folder / predictions.FOLDER / path.name).read_bytes()
        run, own_run = (json.loads((f / "run.json").read_text()) for f in (folder, own))
        assert run.pop("members") == 3
        assert run.pop("command").split()[1:] == shlex.join(map(str, commands[number])).split()
        own_run.pop("command")
        assert run == own_run
        log = (folder / "train.log").read_text()
        others = [f"{tmp_path}/m{n}/" for n in range(3) if n != number]
        assert str(folder) in log and not any(other in log for other in others)


@pytest.mark.parametrize("together", ["auto", "always"])
def test_members_test_once_at_their_ends(
    sweep, alone, data_folder, base_checkpoint, tmp_path, together
):
    """One ends an epoch before the others."""
    commands = [
        flags(
            data_folder,
            base_checkpoint,
            tmp_path / f"m{n}",
            **{"max_epoch": 2, "eval_test": "best", **more},
        )
        for n, more in enumerate(MEMBERS)
    ]
    done = sweep(commands, "--together", together)
    assert done.returncode == 0, done.stderr
    for number, own in enumerate(alone):
        lines, expected = curve(tmp_path / f"m{number}"), curve(own)
        best = max(expected, key=lambda at: (at["subsets"]["valid"]["accuracy"], at["epoch"]))
        assert [at["epoch"] for at in lines if "test" in at["subsets"]] == [best["epoch"]]
        tested = lines[best["epoch"] - 1]["subsets"]["test"]
        if together == "auto":
            assert tested == best["subsets"]["test"]
        assert tested["loss"] == pytest.approx(best["subsets"]["test"]["loss"], rel=1e-4)


def test_members_of_other_methods(sweep, fairseq, data_folder, base_checkpoint, tmp_path):
    """One group of several methods, without dropout, and with gradients of two batches an update:
    AdaLoRA has a penalty and a schedule of its own."""
    methods = ("adapter", "head_only", "prompt", "ia3", "adalora")
    more = {**OFF, "update_freq": 2}
    commands, folders = [], {}
    for seed, method in enumerate(methods, start=1):
        arch, folder = f"roberta_small_{method}", tmp_path / method
        folders[folder] = tmp_path / f"{method}-alone"
        words = flags(data_folder, base_checkpoint, folder, arch=arch, seed=seed, **more)
        commands.append(words)
        done = fairseq("train", *[str(folders[folder]) if w == str(folder) else w for w in words])
        assert done.returncode == 0, done.stderr
    done = sweep(commands, "--together", "always")
    assert done.returncode == 0, done.stderr
    for folder, own in folders.items():
        assert difference(trained(folder)[1], trained(own)[1]) < TOLERANCE["fp32"]


def test_one_that_fails_does_not_stop_the_others(sweep, data_folder, base_checkpoint, tmp_path):
    """A learning rate that diverges; its log and the exit status say so."""
    commands = [
        flags(data_folder, base_checkpoint, tmp_path / "good"),
        flags(data_folder, base_checkpoint, tmp_path / "bad", lr=1e38, warmup_updates=0),
    ]
    done = sweep(commands, "--together", "always")
    assert done.returncode == 1
    told = done.stdout + done.stderr  # where a log goes is a matter of who imported fairseq
    assert f"failed: {tmp_path}/bad" in told and "diverged" in told
    assert "diverged" in (tmp_path / "bad" / "train.log").read_text()
    assert curve(tmp_path / "good")[0]["num_updates"] == 9


def test_bad_input_is_one_sentence(sweep, data_folder, base_checkpoint, tmp_path):
    def one(name, **more):
        return flags(data_folder, base_checkpoint, tmp_path / name, **more)

    for commands, message in [
        ([], "names no run"),
        ([one("a"), one("a")], "Two members have --save-dir"),
        ([one("a", task="masked_lm", criterion="masked_lm")], "--task masked_lm cannot be"),
    ]:
        done = sweep(commands)
        assert done.returncode == 1, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if "error:" in line]
        assert message in line and "Traceback" not in done.stderr
    done = sweep([one("a"), one("b", arch="roberta_small_full")])
    assert done.returncode == 1 and "there is no base to share" in done.stdout + done.stderr
    assert "Traceback" not in (tmp_path / "b" / "train.log").read_text()


def test_sweep_script_with_members(python, data_folder, base_checkpoint, tmp_path):
    """Grid and seeds of a cell in groups; what is left is what a sweep without MEMBERS leaves."""
    knobs = {
        "DATA": data_folder,
        "BASE": base_checkpoint,
        "CELLS": "pretrained/lora pretrained/full",
        "SEEDS": "1 2 3",
        "LR_LORA": "1e-3 1e-2",
        "LR_FULL": "1e-3",
        "EPOCHS": 1,
        "BATCH_SIZE": 8,
        "THREADS": 1,
        "ARCH_ARGS": " ".join(TINY_FLAGS),
        "PYTHON": python,
        "FORK_SWEEPS": "1",
    }
    results = {}
    for members in (1, 3):
        runs = tmp_path / f"runs{members}"
        done = script("sweep.sh", **knobs, RUNS=runs, MEMBERS=members)
        assert done.returncode == 0, done.stderr
        assert "7 of 7 done" in done.stdout
        for path in runs.rglob("result.json"):
            result = json.loads(path.read_text())
            folder = path.parent
            assert not (folder / "checkpoint_last.pt").exists()
            assert (folder / "checkpoint_best.pt").exists()
            key = str(path.relative_to(runs))
            results.setdefault(key, []).append((result["valid_accuracy"], result["test_accuracy"]))
            grouped = members == 3 and "lora" in key
            assert result.get("members", 1) == (2 if grouped else 1)
    assert len(results) == 6
    assert all(len(pair) == 2 and pair[0] == pair[1] for pair in results.values())
    for seed in (2, 3):
        shutil.rmtree(tmp_path / f"runs3/{data_folder.name}/pretrained/lora/seed{seed}")
    done = script("sweep.sh", **knobs, RUNS=tmp_path / "runs3", MEMBERS=3, WORKER="none")
    assert done.returncode == 0 and done.stdout.count("started") == 1
