"""scripts/pretrain.sh and its verbs: from raw text to a checkpoint, killed and taken up again."""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from workers import children, until

from fairseq_peft.cli import main

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "pretrain.sh"
TINY = (
    "--encoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 16 "
    "--encoder-attention-heads 2"
)


def pretrain(cwd, *args, popen=False, **knobs):
    environment = {**os.environ, **{name: str(value) for name, value in knobs.items()}}
    command = ["bash", str(SCRIPT), *map(str, args)]
    options = {"cwd": cwd, "env": environment, "stdin": subprocess.DEVNULL, "text": True}
    if popen:
        with open(cwd / "first.out", "w") as output:
            return subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True, **options
            )
    return subprocess.run(command, capture_output=True, **options)


def test_help_names_every_knob(tmp_path):
    done = pretrain(tmp_path, "--help")
    assert done.returncode == 0 and done.stdout.startswith("Usage:")
    knobs = re.findall(r"^([A-Z_]+)=\$\{", SCRIPT.read_text(), flags=re.MULTILINE)
    assert len(knobs) > 20
    assert [knob for knob in knobs if f"{knob}=" not in done.stdout] == ["PROGRESS_S"]


def test_dry_run_prints_the_commands_and_writes_nothing(tmp_path):
    knobs = {"RAW": "a.txt b.xz", "SAVE_DIR": tmp_path / "out", "ARCH_ARGS": TINY, "LR": "1e-3"}
    done = pretrain(tmp_path, "--dry-run", "c d.txt", "--", "--dropout", "0.3", **knobs)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    short, long = (line for line in lines if "fairseq_cli.train" in line)
    assert "prepare-corpus a.txt b.xz c\\ d.txt --out" in done.stdout
    assert "svd-embeddings" in done.stdout and "--dim 16" in done.stdout
    for line in (short, long):
        assert line.endswith("--dropout 0.3") and "--lr 1e-3" in line and TINY in line
        assert "--total-num-update 7100" in line and "--max-positions 256" in line
    assert "--tokens-per-sample 64 " in short and "--batch-size 32 " in short
    assert "--max-update 4400 " in short and "--init-embeddings" in short
    assert "--tokens-per-sample 256 " in long and "--batch-size 8 " in long
    assert "--max-update 7100 " in long and "short/checkpoint_last.pt" in long
    assert "--reset-optimizer" not in long and "--init-embeddings" not in long
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_one_phase_with_random_embeddings(tmp_path):
    knobs = {"RAW": "a", "SAVE_DIR": "out", "UPDATES_SHORT": 0, "INIT_EMBEDDINGS": "random"}
    done = pretrain(tmp_path, "--dry-run", SPM="m", DICT="d", HALF=1, **knobs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fairseq_cli.train") == 1 and "svd" not in done.stdout
    assert "--restore-file" not in done.stdout and "--spm m --dict d" in done.stdout
    assert "--half" in done.stdout


def test_dry_run_with_another_bpe(tmp_path):
    knobs = {"RAW": "a", "SAVE_DIR": "out", "START": SCRIPT, "BPE": "bert", "BPE_DIR": "b"}
    done = pretrain(tmp_path, "--dry-run", BPE_CASED=1, **knobs)
    assert done.returncode == 0, done.stderr
    assert "--bpe bert --bpe-dir b --bpe-cased" in done.stdout


def test_dry_run_of_a_constant_rate_with_an_end_and_masks_of_whole_words(tmp_path):
    knobs = {"RAW": "a.txt:1.5", "SAVE_DIR": "out", "DECAY": "0.45", "WHOLE_WORDS": 1}
    knobs.update(TOKENS_PER_UPDATE=65536, TOKENS_AT_ONCE=8192, EXCLUDE="t.txt", EXCLUDE_ENDS=80)
    done = pretrain(tmp_path, "--dry-run", MASK_SHORT="0.3", MASK_LONG="0.18", **knobs)
    assert done.returncode == 0, done.stderr
    phases = [line for line in done.stdout.splitlines() if "fairseq_cli.train" in line]
    for line, masked, length in zip(phases, ("0.3", "0.18"), (64, 256)):
        assert f"--batch-size {8192 // length} --update-freq 8 --required" in line
        assert f"--mask-prob {masked} --mask-whole-words " in line
        assert "--lr-scheduler warmup_stable_decay --decay-share 0.45" in line
        assert "--total-num-update 7100" in line
    assert "prepare-corpus a.txt:1.5 --out" in done.stdout
    assert "--exclude t.txt --exclude-ends 80" in done.stdout


def test_dry_run_from_a_checkpoint(tmp_path):
    knobs = {"RAW": "a.txt own.txt:8", "SAVE_DIR": "out", "START": SCRIPT, "SPM": "m"}
    done = pretrain(tmp_path, "--dry-run", EXCLUDE="v.txt t.txt", **knobs)
    assert done.returncode == 0, done.stderr
    short, long = (line for line in done.stdout.splitlines() if "fairseq_cli.train" in line)
    resets = " ".join(f"--reset-{part}" for part in ("optimizer", "lr-scheduler", "dataloader"))
    assert f"--restore-file {SCRIPT} {resets} --reset-meters" in short
    assert "short/checkpoint_last.pt" in long and "--reset-optimizer" not in long
    assert "svd" not in done.stdout and "--init-embeddings" not in done.stdout
    assert "prepare-corpus a.txt own.txt:8 --out" in done.stdout
    assert "--exclude v.txt t.txt" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"RAW": ""}, "RAW is empty"),
        ({"SAVE_DIR": ""}, "SAVE_DIR is empty"),
        ({"UPDATES_LONG": "many"}, "UPDATES_LONG='many'"),
        ({"VALID_LINES": "0"}, "VALID_LINES='0'"),
        ({"WARMUP": "9000"}, "expected more than WARMUP=9000"),
        ({"TOKENS_SHORT": "512"}, "TOKENS_SHORT=512 is above TOKENS_LONG=256"),
        ({"TOKENS_PER_UPDATE": "128"}, "less than one block of TOKENS_LONG=256"),
        ({"TOKENS_AT_ONCE": "1000"}, "expected TOKENS_PER_UPDATE=2048 or a half, a third"),
        ({"TOKENS_AT_ONCE": "128"}, "and a block of TOKENS_LONG=256 or more"),
        ({"EXCLUDE_ENDS": "80"}, "EXCLUDE_ENDS would be ignored: EXCLUDE is empty"),
        ({"MASK_SHORT": "15"}, "MASK_SHORT='15' is not a share"),
        ({"DECAY": "0"}, "DECAY='0' is not a share"),
        ({"WHOLE_WORDS": "yes"}, "expected 0 or 1"),
        ({"INIT_EMBEDDINGS": "glove"}, "expected svd or random"),
        ({"DICT": "d"}, "DICT is given without SPM"),
        ({"SPM": "m", "VOCAB_SIZE": "100"}, "would be ignored"),
        ({"BPE": "bert", "BPE_CASED": "yes"}, "BPE_CASED=yes: expected 0 or 1"),
        ({"START": "no.pt", "SPM": "m"}, "START=no.pt does not exist"),
        ({"START": SCRIPT.parent, "SPM": "m"}, "does not exist; name the model.pt"),
        ({"START": SCRIPT}, "START needs SPM"),
        ({"START": SCRIPT, "SPM": "m", "INIT_EMBEDDINGS": "svd"}, "would be ignored: START has"),
    ],
)
def test_bad_knobs_are_refused(tmp_path, knobs, message):
    done = pretrain(tmp_path, **{"RAW": "a.txt", "SAVE_DIR": "out", **knobs})
    assert done.returncode == 1 and message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_text_is_one_sentence(tmp_path):
    done = pretrain(tmp_path, RAW="nowhere.txt", SAVE_DIR="out")
    assert done.returncode == 1 and "nowhere.txt does not exist" in done.stderr
    assert not (tmp_path / "out" / "model.pt").exists()


def test_other_knobs_in_the_same_folder_are_refused(tmp_path):
    pretrain(tmp_path, RAW="nowhere.txt", SAVE_DIR="out")
    second = pretrain(tmp_path, RAW="elsewhere.txt", SAVE_DIR="out")  # nothing is there yet
    assert "elsewhere.txt does not exist" in second.stderr
    (tmp_path / "out" / "work" / "data-bin").mkdir()
    third = pretrain(tmp_path, RAW="elsewhere.txt", SAVE_DIR="out", LR="1e-3")
    assert third.returncode == 1 and "begun with other knobs" in third.stderr
    assert "now:  LR=1e-3" in third.stderr and "then: LR=6e-4" in third.stderr
    fourth = pretrain(tmp_path, RAW="elsewhere.txt", SAVE_DIR="out", START=SCRIPT, SPM="m")
    assert fourth.returncode == 1 and f"now:  START={SCRIPT}" in fourth.stderr
    fifth = pretrain(tmp_path, RAW="elsewhere.txt", SAVE_DIR="out", EXCLUDE="test.txt")
    assert fifth.returncode == 1 and "now:  EXCLUDE=test.txt" in fifth.stderr


def test_a_folder_from_before_a_knob_goes_on(tmp_path):
    """Knobs that came later are in its settings only where they are given."""
    pretrain(tmp_path, RAW="nowhere.txt", SAVE_DIR="out")
    settings = (tmp_path / "out" / "work" / "settings").read_text()
    assert "START" not in settings and "EXCLUDE" not in settings and "LR=6e-4" in settings


@pytest.fixture
def checkpoint(tmp_path):
    torch = pytest.importorskip("torch")
    state = {
        "args": None,
        "cfg": {
            "model": argparse.Namespace(arch="roberta_small", init_embeddings="/home/me/init.npz"),
            "checkpoint": {"restore_file": "/home/me/short.pt", "save_dir": "x"},
        },
        "model": {"weight": torch.full((3, 2), 1 / 3), "version": torch.tensor([3])},
        "optimizer_history": [{"criterion_name": "MaskedLmLoss", "num_updates": 7}],
        "extra_state": {"metrics": [1, 2], "train_iterator": {"epoch": 9}},
        "last_optimizer_state": {"state": {0: torch.zeros(1000)}},
    }
    torch.save(state, tmp_path / "checkpoint_last.pt")
    return tmp_path / "checkpoint_last.pt"


@pytest.mark.parametrize("half", [False, True])
def test_export_keeps_the_weights_only(checkpoint, tmp_path, half):
    import torch

    out = tmp_path / "model.pt"
    flags = ["--half"] if half else []
    assert main(["export-checkpoint", str(checkpoint), "--out", str(out), *flags]) == 0
    with torch.serialization.safe_globals([argparse.Namespace]):
        state = torch.load(out, weights_only=True)
    dtype = torch.float16 if half else torch.float32
    assert torch.equal(state["model"]["weight"], torch.full((3, 2), 1 / 3).to(dtype))
    assert state["model"]["version"].tolist() == [3]
    assert state["last_optimizer_state"] is None and "metrics" not in state["extra_state"]
    assert state["cfg"]["model"].arch == "roberta_small"
    assert state["cfg"]["model"].init_embeddings is None
    assert state["cfg"]["checkpoint"]["restore_file"] == "checkpoint_last.pt"
    assert state["optimizer_history"][-1]["num_updates"] == 7


class Dangerous:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_export_refuses_what_would_run_code_or_is_cut_short(
    checkpoint, tmp_path, monkeypatch, capsys
):
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "cfg": Dangerous()}, "dangerous.pt")
    Path("short.pt").write_bytes(checkpoint.read_bytes()[:500])
    torch.save([1], "list.pt")
    for name in ("dangerous.pt", "short.pt", "list.pt", "missing.pt"):
        assert main(["export-checkpoint", name, "--out", "out.pt"]) == 1
        error = capsys.readouterr().err
        assert name in error and error.count("\n") == 1
    assert not Path("ran").exists() and not Path("out.pt").exists()


def text(tmp_path, weights=None):
    """500 lines of twenty words, which are as likely as their weights say."""
    words = [f"{a}{b}" for a in ("ba", "co", "di", "fu", "le") for b in ("ma", "ne", "ri", "to")]
    rng = random.Random(0)
    lines = [" ".join(rng.choices(words, weights, k=12)) for _ in range(500)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    return lines


#: Blocks of 16, then of 32.
SMALL = {
    "RAW": "text.txt", "VOCAB_SIZE": 34, "VALID_LINES": 20, "WARMUP": 10, "TOKENS_SHORT": 16,
    "TOKENS_LONG": 32, "TOKENS_PER_UPDATE": 128, "LOG_EVERY": 10, "THREADS": 1, "ARCH_ARGS": TINY,
}  # fmt: skip


def losses(folder):
    """num_updates and train_loss of each point of the curve."""
    rows = [json.loads(line) for line in (folder / "pretrain.jsonl").read_text().splitlines()]
    return [row["num_updates"] for row in rows], [row["train_loss"] for row in rows]


@pytest.mark.end_to_end
def test_start_goes_on_from_a_checkpoint(python, tmp_path):
    """From its weights, in half precision here, with a schedule of its own; and not from it again
    where its own run has been begun."""
    pytest.importorskip("fairseq")
    lines = text(tmp_path, [2.0**-i for i in range(20)])
    first = {**SMALL, "SAVE_DIR": "first", "UPDATES_SHORT": 0, "UPDATES_LONG": 100, "HALF": 1}
    first.update(VOCAB_SIZE=24, PYTHON=python)
    done = pretrain(tmp_path, LR="1e-2", INIT_EMBEDDINGS="random", **first)
    assert done.returncode == 0, done.stdout + done.stderr
    _, before = losses(tmp_path / "first")
    assert before[-1] < before[0] - 0.5

    (tmp_path / "test.txt").write_text("\n".join(lines[:7]))
    again = {**SMALL, "SAVE_DIR": "second", "UPDATES_SHORT": 0, "UPDATES_LONG": 20, "LR": "1e-6"}
    again.update(PYTHON=python, VOCAB_SIZE="", RAW="text.txt:2", EXCLUDE="test.txt")
    again.update(TOKENS_AT_ONCE=64, DECAY="0.5")
    again.update(START="first/model.pt", SPM="first/sentencepiece.bpe.model", DICT="first/dict.txt")
    done = pretrain(tmp_path, **again)
    assert done.returncode == 0, done.stdout + done.stderr
    updates, after = losses(tmp_path / "second")
    assert updates == [10, 20]
    assert all(abs(loss - before[-1]) < (before[0] - before[-1]) / 3 for loss in after)
    work = tmp_path / "second" / "work"
    assert "7 lines left out, as they are in --exclude" in (work / "prepare.log").read_text()
    assert not (work / "init.npz").exists()

    for path in (work / "long" / "done", tmp_path / "second" / "model.pt"):
        path.unlink()
    done = pretrain(tmp_path, "--dry-run", **again)
    (line,) = (line for line in done.stdout.splitlines() if "fairseq_cli.train" in line)
    assert "--restore-file" not in line and "--reset-optimizer" not in line

    rows = (tmp_path / "first" / "dict.txt").read_text().splitlines()
    rows[2:4] = reversed(rows[2:4])
    (tmp_path / "other.txt").write_text("\n".join(rows) + "\n")
    done = pretrain(tmp_path, **{**again, "SAVE_DIR": "third", "DICT": "other.txt"})
    assert done.returncode == 1
    assert "first/dict.txt and other.txt differ from line 3 on; give DICT=" in done.stderr
    assert not (tmp_path / "third" / "model.pt").exists()


def is_idle(server):
    """Whether no program runs in a child of the server, or of its first child, a server, too."""
    second, *programs = children(server.process.pid)
    return not programs and not children(second)


@pytest.mark.end_to_end
def test_killed_and_taken_up_again(fork_server, python, tmp_path):
    pytest.importorskip("fairseq")
    import torch

    text(tmp_path)
    knobs = {
        **SMALL, "SAVE_DIR": "out", "UPDATES_SHORT": 30, "UPDATES_LONG": 270, "SAVE_EVERY": 20,
        "VALID_EVERY": 20, "PROGRESS_S": 1, "HALF": 1, "PYTHON": python,
    }  # fmt: skip
    out = tmp_path / "out"
    first = pretrain(tmp_path, popen=True, **knobs)
    last = out / "work" / "long" / "checkpoint_last.pt"
    deadline = time.monotonic() + 600
    while not last.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    until(lambda: is_idle(fork_server))
    printed = (tmp_path / "first.out").read_text()
    assert last.exists(), printed
    assert not (out / "model.pt").exists(), "killed too late to test anything"
    assert "training on blocks of 16" in printed

    last.write_bytes(last.read_bytes()[:1000])  # as if killed while copying
    before = (out / "work" / "short" / "train.log").read_text()
    second = pretrain(tmp_path, **knobs)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "preprocess" not in second.stdout and "done before" in second.stdout
    assert (out / "work" / "short" / "train.log").read_text() == before
    log = (out / "work" / "long" / "train.log").read_text()
    restarts = [int(n) for n in re.findall(r"Loaded checkpoint .* @ (\d+) updates", log)]
    assert restarts[0] == 30 and 30 < restarts[1] < 300 and restarts[1] % 20 == 0

    # One straight line from 6e-4 at update 10 to 0 at update 300, across phases and restarts.
    for num_updates, lr in re.findall(r'"num_updates": "(\d+)", "lr": "([^"]+)"', before + log):
        expected = 6e-4 * (1 - (int(num_updates) - 10) / 290)
        assert float(lr) == pytest.approx(expected, abs=1e-6)

    rows = [json.loads(line) for line in (out / "pretrain.jsonl").read_text().splitlines()]
    assert [row["num_updates"] for row in rows] == list(range(10, 301, 10))
    assert {(row["phase"], row["tokens_per_sample"]) for row in rows} == {(1, 16), (2, 32)}
    assert all(a["num_tokens"] < b["num_tokens"] for a, b in zip(rows, rows[1:]))
    losses = [row["valid_loss"] for row in rows if row["valid_loss"]]
    assert losses[-1] < losses[0]

    with torch.serialization.safe_globals([argparse.Namespace]):
        state = torch.load(out / "model.pt", weights_only=True)
    assert state["last_optimizer_state"] is None
    embeddings = state["model"]["encoder.sentence_encoder.embed_tokens.weight"]
    num_rows = 4 + len((out / "dict.txt").read_text("utf-8").splitlines()) + 1
    assert embeddings.shape == (num_rows, 16) and embeddings.dtype == torch.float16
    assert (out / "sentencepiece.bpe.model").exists()

    third = pretrain(tmp_path, **knobs)
    assert third.returncode == 0 and "nothing to do" in third.stdout
