"""Runs on a folder of Hugging Face's: recognised, trained, gone on with, swept and reported."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
import verbs
from helpers import script
from hf_families import GPT2, T5, write_base, write_rows

from fairseq_peft import cli
from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.architectures import hf_configs
from fairseq_peft.data.buckets import packed_batches
from fairseq_peft.errors import InputError
from fairseq_peft.models import hf_families
from fairseq_peft.report.html.words import headline
from fairseq_peft.runs import plan, predictions
from fairseq_peft.sweeps import cells
from fairseq_peft.sweeps.bases import TASKS
from fairseq_peft.sweeps.knobs import Knobs, command
from fairseq_peft.sweeps.sweep import Sweep
from fairseq_peft.tasks.answers import AnswersConfig, CausalLMTask
from fairseq_peft.text import pairs

SIZES = {"train": 24, "valid": 8, "test": 9}
MODELS = {"t5": (T5, "text_to_text"), "gpt2": (GPT2, "causal_lm")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two bases, and data for each: t5 and t5-rows, gpt2 and gpt2-rows."""
    folder = tmp_path_factory.mktemp("folder-bases")
    for name, (config, task) in MODELS.items():
        write_base(folder / name, config)
        write_rows(folder / f"{name}-rows", pairs.COLUMNS[task], **SIZES)
    return folder


@pytest.fixture
def finetune(folder, python, monkeypatch, caplog):
    """``finetune(runs, "--epochs", "2")`` of T5: exit status, folder, and what was logged."""
    monkeypatch.setattr(sys, "executable", str(python))

    def call(runs, *words):
        caplog.clear()
        flags = ["--base", folder / "t5", "--data", folder / "t5-rows", "--runs", runs]
        flags += ["--method", "lora", "--batch-size", "8", "--threads", "1", "--lr", "3e-2"]
        flags += ["--labels", "good,bad", "--warmup", "0", "--precision", "fp32"]
        with caplog.at_level("INFO"):
            status = cli.main(["finetune", *map(str, flags), *words])
        return status, runs / "t5-rows" / "pretrained" / "lora" / "seed1", caplog.text

    return call


@pytest.mark.parametrize("method, lr, epochs", [("lora", 5, 3), ("full", 1, 2)])
def test_test_is_evaluated_once_with_the_best_weights(finetune, tmp_path, method, lr, epochs):
    more = ["--method", method, "--epochs", str(epochs), "--metric", "loss", "--lr", str(lr)]
    fixed = ["--", "--lr-scheduler", "fixed"]
    results, lines = [], []
    for name in ("each", "best"):
        status, run, _ = finetune(tmp_path / name, "--eval-test", name, *more, *fixed)
        run = run.parents[1] / method / "seed1"
        assert status == 0
        results.append(json.loads((run / "result.json").read_text()))
        lines.append(list(map(json.loads, (run / "metrics.jsonl").read_text().splitlines())))
        found = predictions.read(run / "predictions.npz")
        assert found.num_correct("test") == round(results[-1]["test_accuracy"] * SIZES["test"])
    print([line["subsets"]["valid"]["loss"] for line in lines[0]])
    each, best = results
    for key in ("best_epoch", "valid_accuracy", "test_accuracy", "test_macro_f1", "best_value"):
        assert each[key] == best[key]
    assert each["best_epoch"] < epochs and best["best_test_epoch"] is None
    tested = [line["epoch"] for line in lines[1] if "test" in line["subsets"]]
    assert tested == [best["best_epoch"]]


def test_a_run_on_a_folder_leaves_what_a_classifiers_does(finetune, folder, tmp_path, capfd):
    fixed = ["--", "--lr-scheduler", "fixed", "--keep-last-epochs", "2"]
    status, run, text = finetune(tmp_path / "a", "--epochs", "1", *fixed)
    assert status == 0 and ": 3 updates; " in text and "epoch 1 of 1: valid " in text
    assert finetune(tmp_path / "a", "--epochs", "2", *fixed)[0] == 1
    assert "max_epoch 1, now 2" in capfd.readouterr().err
    assert finetune(tmp_path / "a", "--epochs", "2", "--extend", *fixed)[0] == 0
    result = json.loads((run / "result.json").read_text())
    assert (result["kind"], result["labels"]) == ("classes", ["good", "bad"])
    assert (result["arch"], result["base"]) == ("hf_seq2seq", str(folder / "t5"))
    assert result["rows"] == SIZES and result["chosen_by"]["metric"] == "accuracy"
    assert result["ended_by"] == "max_epoch: 2" and result["trainable_parameters"] < 3000
    found = predictions.read(run / "predictions.npz")
    assert found.num_correct("test") == round(result["test_accuracy"] * SIZES["test"])
    assert found.target["test"].tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    told = adapter_folder.read(run / "adapter", of_any_task=True).description
    assert told["metrics"]["num_updates"] == result["best_update"]
    assert told["metrics"]["value"] == result["best_value"]
    assert plan.read(run).base_sha256 == plan.base_fingerprint(folder / "t5")
    assert "is done" in finetune(tmp_path / "a", "--epochs", "2", *fixed)[2]
    # As a run of two epochs from the beginning.
    status, again, _ = finetune(tmp_path / "b", "--epochs", "2", *fixed)
    assert json.loads((again / "result.json").read_text())["curve"] == result["curve"]
    check_average(again, tmp_path / "mean")


def check_average(run, out):
    """The mean of its two checkpoints, scored as labels are."""
    verbs.run("average", run, "--last", 2, "--out", out)
    found = adapter_folder.read(out / "adapter", of_any_task=True)
    states = [torch.load(run / f"checkpoint{epoch}.pt")["model"] for epoch in (1, 2)]
    for name, tensor in found.tensors.items():
        assert torch.equal(tensor, (states[0][name].double() + states[1][name]).float() / 2)
    assert found.tensors and found.description["origin"]["updates"] == [3, 6]
    result = json.loads((out / "result.json").read_text())
    rows = predictions.read(out / predictions.NAME)
    assert result["method"] == "lora-last2"
    assert rows.num_correct("test") == round(result["test_accuracy"] * SIZES["test"])


def test_a_sweep_without_labels_is_chosen_by_the_loss_and_reported(folder, python, tmp_path):
    knobs = {"BASE": folder / "gpt2", "DATA": folder / "gpt2-rows", "RUNS": tmp_path / "runs"}
    knobs |= {"CELLS": "pretrained/full pretrained/lora", "SEEDS": "1", "LR_LORA": "1e-2 1e-9"}
    knobs |= {"LR_FULL": "1e-2", "EPOCHS": 1, "BATCH_SIZE": 8, "THREADS": 1, "PRECISION": "fp32"}
    few = ("--", "--pack", "--train-examples", "16", "--max-answer-tokens", "8")
    done = script("sweep.sh", *few, **knobs, TMPDIR=tmp_path, PYTHON=python, FORK_SWEEPS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert cli.main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0
    rows = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [(row["method"], row["kind"], row["metric"]) for row in rows] == [
        ("full", "text", "loss"),
        ("lora", "text", "loss"),
    ]
    assert rows[1]["learning_rate"] == 1e-2  # whose loss is the lower one
    assert {row["num_train_rows"] for row in rows} == {16}
    assert 0 < rows[0]["test_loss_mean"] < 5 and rows[0]["test_accuracy_mean"] is None
    text = (tmp_path / "report" / "report.txt").read_text()
    assert "loss and ROUGE" in text and "macro-F1" not in text
    assert "the lowest test loss of 2 is that of full" in headline(rows)


@pytest.fixture
def knobs(folder, tmp_path):
    return Knobs(
        **{"data": str(folder / "t5-rows"), "runs": str(tmp_path), "base": str(folder / "t5")},
        **{"method": "lora", "label": "lora", "size": "auto", "seed": 1, "lr": "1e-3"},
        **{"epochs": 2, "batch_size": 8, "warmup": 50, "precision": "fp32", "threads": 1},
        **{"subsets": "valid,test", "arch_args": [], "flags": []},
    )


@pytest.mark.parametrize("name", MODELS)
def test_base_and_labels_tell_what_runs(knobs, folder, name):
    own = replace(knobs, base=str(folder / name), data=str(folder / f"{name}-rows"))
    words = command(own)
    found = dict(zip(words, words[1:]))
    assert found["--task"] == MODELS[name][1] and TASKS[found["--arch"]] == found["--task"]
    assert found["--best-checkpoint-metric"] == "loss" and "--eval-rouge" not in words
    assert (found["--warmup-updates"], found["--total-num-update"]) == ("3", "6")
    words = command(replace(own, labels="good,bad", flags=["--update-freq", "2"]))
    assert "--maximize-best-checkpoint-metric" in words and "accuracy" in words
    assert dict(zip(words, words[1:]))["--total-num-update"] == "4"
    assert "--eval-rouge" in command(replace(own, metric="rougeL"))
    words = command(replace(own, flags=["--train-examples", "10"]))
    assert dict(zip(words, words[1:]))["--total-num-update"] == "4"  # 10 rows, batches of 8


def test_packed_epochs_are_as_long_as_they_will_be(knobs, folder):
    """Where tokens limit a batch, each epoch draws as many batches as come out."""
    own = {"base": str(folder / "gpt2"), "data": str(folder / "gpt2-rows"), "epochs": 9}
    flags = ["--pack", "--max-tokens", "20", "--max-answer-tokens", "8"]
    words = command(replace(knobs, **own, flags=flags))
    task = CausalLMTask.setup_task(
        AnswersConfig(
            **{"data": own["data"], "hf_tokenizer": own["base"], "pack": True},
            **{"train_subset": "train", "max_answer_tokens": 8},
        )
    )
    task.build_model(Namespace(_name="hf_causal_lm", hf_model=own["base"], peft="lora"))
    sizes = task.load_dataset("train").sizes
    each = [
        len(packed_batches(sizes, 8, 20, np.random.default_rng([1, epoch])))
        for epoch in range(1, 10)
    ]
    assert len(set(each)) > 1
    assert dict(zip(words, words[1:]))["--total-num-update"] == str(sum(each))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"base": "gpt2"}, "train.jsonl, line 1 has input and target; expected prompt and answer"),
        ({"base": "t5-rows"}, "is a folder, and its config.json cannot be read"),
        ({"base": "bert"}, "a model of type 'bert'; those that answer in text are gpt2"),
        ({"data": "nothing"}, "has neither of train.jsonl and train.tsv"),
        ({"base": None}, "has rows of texts, .*: give --base the folder of one"),
        ({"base": None, "labels": "a,b"}, "--labels a,b would be ignored"),
        ({"size": "roberta_base"}, "--size roberta_base would be ignored"),
        ({"class_weights": "balanced"}, "--class-weights balanced would be ignored"),
    ],
)
def test_what_cannot_be_is_one_sentence(knobs, folder, more, message):
    (folder / "bert").mkdir(exist_ok=True)
    (folder / "bert" / "config.json").write_text('{"model_type": "bert"}')
    places = {key: value and str(folder / value) for key, value in more.items() if key != "labels"}
    more = {**more, **{key: places[key] for key in ("base", "data") if key in more}}
    with pytest.raises(InputError, match=message):
        command(replace(knobs, **more))


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (["scratch/full"], {}, "The cell scratch/full: runs on .* start from its weights"),
        (
            ["pretrained/lora"],
            {"members": 2},
            "--members 2 .MEMBERS. is for classifiers of fairseq's",
        ),
    ],
)
def test_a_sweep_refuses_what_only_classifiers_do(knobs, names, given, message):
    with pytest.raises(InputError, match=message):
        Sweep(knobs, cells.read(names, {}, {}), [1], **given)


def test_a_sweep_checks_its_cells_before_the_first_run(knobs, folder, tmp_path):
    assert cells.usual(knobs.base) == [
        *("pretrained/full", "pretrained/lora", "pretrained/adapter", "pretrained/prompt")
    ]
    read = cells.read(["pretrained/lora"], {}, {"LORA": "1e-3"})
    sweep = Sweep(knobs, read, [1])
    sweep.check(sweep.schedule())
    for more, message in [
        ({"labels": "good,w7"}, "'bad' is none of --labels"),
        ({"metric": "f1_good"}, "f1_good is unknown; expected loss, rouge1"),
        ({"subsets": "test"}, "a test set never does"),
    ]:
        sweep = Sweep(replace(knobs, **more), read, [1])
        with pytest.raises(InputError, match=f"pretrained/lora cannot start: .*{message}"):
            sweep.check(sweep.schedule())
    assert not list(tmp_path.iterdir())


def test_the_names_of_models_are_those_that_are_described():
    described = {"hf_causal_lm": hf_families.CAUSAL, "hf_seq2seq": hf_families.SEQ2SEQ}
    assert {arch: tuple(kinds) for arch, kinds in described.items()} == hf_configs.KINDS
