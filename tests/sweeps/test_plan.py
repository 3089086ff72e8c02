"""The plan of a run: what it reads off a command line, and what it calls another run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from helpers import ROOT, TINY_FLAGS, write_data

pytest.importorskip("fairseq")

from kinds import LABELS, labels_rows, write_labels, write_numbers  # noqa: E402

from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.runs import lock, plan  # noqa: E402
from fairseq_peft.sweeps import bases, finetune  # noqa: E402
from fairseq_peft.sweeps import knobs as knobs_of  # noqa: E402


@pytest.fixture
def knobs(data_folder, tmp_path):
    """Knobs of a run from scratch on 67 rows, so 9 batches of 8 an epoch."""
    return knobs_of.Knobs(
        data=str(data_folder),
        runs=str(tmp_path / "runs"),
        method="lora",
        label="lora",
        base=None,
        size="roberta_small",
        seed=1,
        lr="1e-3",
        epochs=3,
        batch_size=8,
        warmup=10,
        precision="fp32",
        subsets="valid,test",
        threads=1,
        arch_args=TINY_FLAGS,
        flags=[],
    )


@pytest.mark.parametrize(
    ("size", "base", "method", "arch"),
    [
        ("auto", "model.pt", "lora", ["--arch", "roberta_lora"]),
        ("auto", None, "lora", ["--arch", "roberta_small_lora"]),
        ("roberta_base", "model.pt", "lora", ["--arch", "roberta_base_lora"]),
        ("auto", "model.pt", "lora+bitfit", ["--arch", "roberta_peft", "--peft", "lora+bitfit"]),
        ("auto", None, "lora,bitfit", ["--arch", "roberta_small", "--peft", "lora,bitfit"]),
    ],
)
def test_the_architecture_of_a_run(knobs, size, base, method, arch):
    words = knobs_of.command(replace(knobs, size=size, base=base, method=method))
    assert words[words.index("--arch") :][: len(arch)] == arch


def test_a_run_from_a_base_is_the_same_whether_its_size_is_named_or_not(knobs, base_checkpoint):
    def planned(**change):
        given = {"base": str(base_checkpoint), **change}
        return plan.make(knobs_of.command(replace(knobs, **given)))

    now = planned(size="auto")
    assert plan.differences(planned(), now) == {}
    assert plan.differences(planned(method="bitfit"), now).keys() == {"arch"}
    both = {"method": "lora+bitfit"}
    assert plan.differences(planned(**both), planned(size="auto", **both)) == {}
    from_scratch = [planned(base=None, size=size) for size in ("roberta_small", "roberta_base")]
    assert plan.differences(*from_scratch).keys() == {"arch"}


@pytest.mark.parametrize(
    ("flags", "updates"),
    [
        ([], 27),
        (["--update-freq", "4"], 9),
        (["--update-freq", "[1,3]"], 15),
        (["--batch-size", "64"], 6),
        (["--max-sent", "64"], 6),  # fairseq takes abbreviations
        (["--max-epoch", "5"], 45),
        (["--max-update", "20"], 20),
        (["--distributed-world-size", "2"], 15),
        (["--train-subset", "valid"], 9),  # 21 rows
        (["--skip-remainder-batch"], 24),  # without the last batch of an epoch
        (["--skip-rem", "--update-freq", "[4,3]"], 6),
        (["--skip-remainder-batch", "--distributed-world-size", "2"], 12),
    ],
)
def test_the_schedule_ends_with_the_last_update(knobs, data_folder, flags, updates):
    assert bases.num_rows(data_folder) == 67
    words = knobs_of.command(replace(knobs, flags=flags))
    found = plan.make(words)
    assert (found.total_updates, found.warmup_updates) == (updates, updates // 10)


def test_a_run_without_an_update_is_refused(knobs):
    few = replace(knobs, batch_size=100, flags=["--skip-remainder-batch"])
    with pytest.raises(InputError, match=r"an epoch of 1 batch\(es\) no update"):
        knobs_of.command(few)


def test_the_schedule_is_of_the_rows_that_are_drawn(knobs):
    few = replace(knobs, epochs=10, batch_size=4, flags=["--train-examples", "6"])
    words = knobs_of.command(few)
    assert words[words.index("--total-num-update") + 1] == "20"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, ["accuracy", "--maximize-best-checkpoint-metric"]),
        ({"metric": "f1_bad"}, ["f1_bad", "--maximize-best-checkpoint-metric"]),
        ({"metric": "loss"}, ["loss"]),
        ({"flags": ["--best-checkpoint-metric", "loss"]}, ["loss"]),
    ],
)
def test_the_metric_says_the_direction(knobs, change, found):
    words = knobs_of.command(replace(knobs, **change))
    assert words.count("--best-checkpoint-metric") == 1
    told = [words[words.index("--best-checkpoint-metric") + 1]]
    assert [*told, *(word for word in words if word.startswith("--maximize"))] == found


def test_other_knobs_are_flags_and_a_metric_is_given_once(knobs):
    words = knobs_of.command(replace(knobs, patience=2, class_weights="balanced", eval_test="best"))
    for pair in (["--patience", "2"], ["--class-weights", "balanced"], ["--eval-test", "best"]):
        assert words[words.index(pair[0]) + 1] == pair[1]
    flags = ["--best-checkpoint-metric", "loss"]
    with pytest.raises(InputError, match="METRIC.* would be ignored"):
        knobs_of.command(replace(knobs, metric="mcc", flags=flags))


def test_batches_by_tokens_are_those_of_the_run(knobs):
    """They differ from epoch to epoch, and the last update of training is the schedule's."""
    flags = ["--max-tokens", "64", "--cpu"]
    words = knobs_of.command(replace(knobs, flags=flags))
    found = plan.make(words)
    assert found.total_updates > 27
    finetune.run(replace(knobs, flags=flags))
    lines = (knobs.folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["num_updates"] == found.total_updates
    assert json.loads(lines[-1])["lr"] == 0


@pytest.mark.parametrize("label", ["two\nlines", "../../../outside", "a/b", ".", ".."])
def test_a_label_is_the_name_of_a_folder(knobs, label):
    with pytest.raises(InputError, match="cannot be what a run is called.*Give one line without /"):
        replace(knobs, label=label)


def test_data_that_are_named_by_where_one_stands_have_a_name(knobs, data_folder, monkeypatch):
    monkeypatch.chdir(data_folder)
    assert replace(knobs, data=".").folder == knobs.folder
    assert replace(knobs, data="label/..").folder == knobs.folder


def test_another_plan_is_refused_with_what_differs(knobs):
    folder = knobs.folder
    now = plan.make(knobs_of.command(knobs))
    assert not finetune.adopt(folder, now)
    (folder / "run.json").touch()
    assert not finetune.adopt(folder, now)  # the same one goes on
    for change, message in [
        ({"lr": "2e-3"}, "lr 0.001, now 0.002"),
        ({"epochs": 4}, "max_epoch 3, now 4"),
        ({"flags": ["--lora-rank", "64"]}, "flags none, now --lora-rank 64"),
        ({"seed": 2}, "seed 1, now 2"),
    ]:
        other = plan.make(knobs_of.command(replace(knobs, **change)))
        with pytest.raises(InputError, match=f"holds another run: .*{message}"):
            finetune.adopt(folder, other)
    assert plan.read(folder) == now
    same = plan.make(knobs_of.command(replace(knobs, lr="0.001", threads=2)))
    assert plan.differences(now, same) == {}


def test_a_launch_that_was_refused_binds_nobody(knobs):
    """It has left its plan and a log, and has trained nothing."""
    assert not finetune.adopt(knobs.folder, plan.make(knobs_of.command(knobs)))
    (knobs.folder / "train.log").write_text("fairseq-train: error: something is missing\n")
    other = plan.make(knobs_of.command(replace(knobs, lr="2e-3")))
    assert not finetune.is_done(knobs.folder, other)
    assert not finetune.adopt(knobs.folder, other)
    assert plan.read(knobs.folder) == other


def test_other_data_is_another_plan(knobs, data_folder, tmp_path):
    before = plan.data_fingerprint(data_folder)
    copy = tmp_path / data_folder.name
    subprocess.run(["cp", "-r", str(data_folder), str(copy)], check=True)
    assert plan.data_fingerprint(copy) == before
    with open(copy / "label" / "train.bin", "r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    now, other = (
        plan.make(knobs_of.command(replace(knobs, data=str(d)))) for d in (data_folder, copy)
    )
    assert plan.sentence(plan.differences(now, other)) == "data has changed"


def test_other_numbers_are_other_data(tmp_path):
    """They are lines of text, where classes are binarised."""
    folder = write_numbers(tmp_path / "numbers")
    before = plan.data_fingerprint(folder)
    assert plan.data_fingerprint(write_numbers(tmp_path / "again")) == before
    path = folder / "label" / "train.label"
    path.write_text(path.read_text().replace(".5\n", ".25\n", 1))
    assert plan.data_fingerprint(folder) != before
    assert plan.data_fingerprint(write_labels(tmp_path / "a")) != plan.data_fingerprint(
        write_data(tmp_path / "b", labels_rows(), LABELS)
    )


def test_redo_throws_away_and_extend_goes_on_only_where_it_is_exact(knobs):
    folder = knobs.folder
    flags = ["--lr-scheduler", "fixed"]

    def planned(**change):
        return plan.make(
            knobs_of.command(replace(knobs, **{"warmup": 0, "flags": flags, **change}))
        )

    finetune.adopt(folder, planned())
    result = folder / "result.json"
    (folder / "checkpoint_last.pt").touch()
    result.write_text('{"ended_by": "num_updates: 9 >= max_update: 9"}')
    with pytest.raises(InputError, match="cannot be extended: .*but num_updates: 9"):
        finetune.adopt(folder, planned(epochs=5), "extend")
    # With more epochs patience would have ended it there, too.
    result.write_text('{"ended_by": "early stop since valid performance"}')
    assert finetune.adopt(folder, planned(epochs=5), "extend") and result.exists()
    assert finetune.adopt(folder, planned(epochs=5))
    finetune.adopt(folder, planned(), "redo")
    (folder / "checkpoint_last.pt").touch()
    result.write_text('{"ended_by": "max_epoch: 3"}')
    for change, message in [
        ({"epochs": 5, "flags": []}, "only --lr-scheduler fixed"),
        ({"epochs": 5, "lr": "2e-3"}, "lr 0.001, now 0.002"),
        ({"epochs": 2}, "2 are fewer"),
        ({"epochs": 5, "warmup": 50}, "warmup_updates 0, now 22.*--warmup 0 is the same"),
    ]:
        with pytest.raises(InputError, match=f"cannot be extended: .*{message}"):
            finetune.adopt(folder, planned(**change), "extend")
    assert not finetune.adopt(folder, planned(epochs=5), "extend")
    assert not (folder / "result.json").exists() and (folder / "checkpoint_last.pt").exists()
    assert not finetune.adopt(folder, planned(seed=2), "redo")
    assert not (folder / "checkpoint_last.pt").exists()


def test_a_lock_ends_with_its_process_and_is_for_one(tmp_path):
    code = (
        "import sys; from fairseq_peft.runs import lock; lock.take(sys.argv[1]); "
        "print('has it', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert other.stdout.readline() == b"has it\n"
        with pytest.raises(
            lock.Busy, match=f"is in use: process {other.pid} on .* writes this run"
        ):
            lock.take(tmp_path)
    finally:
        other.kill()
        other.communicate()
    lock.take(tmp_path)
    lock.take(tmp_path)  # it has it
    lock.release(tmp_path)


def test_torchrun_without_a_world_size_is_told_the_flag(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--distributed-world-size 2" in lock._advice()
