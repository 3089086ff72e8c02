"""``--train-examples``: a draw of the training rows, balanced, nested and of the seed alone."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
from helpers import task_config

pytest.importorskip("torch")
pytest.importorskip("fairseq")

from fairseq_peft.data.draws import drawn_rows  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.tasks.sentence_classification import SentenceClassificationTask  # noqa: E402

TARGETS = np.array([0] * 20 + [1] * 9 + [2] * 2)


def test_each_class_as_often_as_it_can():
    rows = drawn_rows(TARGETS, 6, seed=1)
    assert np.bincount(TARGETS[rows]).tolist() == [2, 2, 2]
    rows = drawn_rows(TARGETS, 15, seed=1)
    counts = np.bincount(TARGETS[rows]).tolist()
    assert counts[2] == 2 and sorted(counts[:2]) == [6, 7]
    assert drawn_rows(TARGETS, len(TARGETS), seed=3).tolist() == list(range(len(TARGETS)))


def test_a_draw_is_of_the_seed_and_part_of_a_larger_one():
    draws = [tuple(drawn_rows(TARGETS, 9, seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    for num in range(3, len(TARGETS)):
        small, large = (set(drawn_rows(TARGETS, n, seed=5)) for n in (num, num + 1))
        assert small < large


@pytest.mark.parametrize("num", [-1, 2, 32])
def test_a_number_that_cannot_be_drawn_is_refused(num):
    with pytest.raises(InputError, match=rf"--train-examples {num}: there are 31 .* 3 and 31"):
        drawn_rows(TARGETS, num, seed=1)


def test_rows_without_a_single_class_are_only_counted():
    with pytest.raises(InputError) as refused:
        drawn_rows(np.zeros(31, dtype=int), 32, seed=1)
    assert "there are 31 training rows. Give a number between 1 and 31." in str(refused.value)


def test_only_train_is_drawn_from(data_folder):
    whole, few = (
        SentenceClassificationTask.setup_task(task_config(data_folder, **more))
        for more in ({}, {"train_examples": 6, "seed": 4})
    )
    whole.max_tokens = few.max_tokens = 40
    assert len(few.load_dataset("valid")) == len(whole.load_dataset("valid"))
    train, drawn = whole.load_dataset("train"), few.load_dataset("train")
    rows = drawn_rows(train.targets, 6, seed=4)
    assert [(item["tokens"], item["target"]) for item in map(drawn.__getitem__, range(6))] == [
        (train[row]["tokens"], train[row]["target"]) for row in rows
    ]
    assert drawn.sizes.tolist() == train.sizes[rows].tolist()


@pytest.fixture
def answers_task(tmp_path):
    """``answers_task(labels="good,bad")``: the task causal_lm on 12 rows, half of them good."""
    from hf_families import GPT2, write_base, write_rows

    base = write_base(tmp_path / "base", GPT2)
    data = write_rows(tmp_path / "rows", ("prompt", "answer"), train=12, valid=5)

    def make(**given):
        from fairseq_peft.tasks.answers import AnswersConfig, CausalLMTask

        given = {"train_subset": "train", "seed": 4, "max_answer_tokens": 2, **given}
        cfg = AnswersConfig(data=str(data), **given)
        cfg._name = "causal_lm"
        task = CausalLMTask.setup_task(cfg)
        args = {"hf_model": str(base), "peft": "lora", "precision": "fp32"}
        task.build_model(argparse.Namespace(_name="hf_causal_lm", **args))
        return task

    return make


def test_answers_are_drawn_as_classes_are(answers_task):
    """Of each label as many; where answers are any text, so many rows."""
    whole, few, text = (
        answers_task(**given)
        for given in (
            {"labels": "good,bad"},
            {"labels": "good,bad", "train_examples": 6},
            {"train_examples": 5, "max_prompt_tokens": 6},
        )
    )
    assert len(few.load_dataset("valid")) == len(text.load_dataset("valid")) == 5
    train, drawn = whole.load_dataset("train"), few.load_dataset("train")
    numbers = drawn_rows(train.targets, 6, seed=4)
    assert drawn.rows == [train.rows[number] for number in numbers]
    assert drawn.targets.tolist() == train.targets[numbers].tolist()
    assert np.bincount(drawn.targets).tolist() == [3, 3]
    assert drawn.sizes.tolist() == train.sizes[numbers].tolist()
    numbers = drawn_rows(np.zeros(12, dtype=int), 5, seed=4)
    drawn = text.load_dataset("train")
    assert [row[0] for row in drawn.rows] == [train.rows[n][0][: 6 - 2] for n in numbers]
    assert 0 < drawn.num_cut == sum(len(train.rows[number][0]) > 4 for number in numbers) <= 5


def test_answers_that_cannot_be_drawn_are_refused(answers_task):
    for number, given, message in (
        (13, {}, "there are 12 training rows. Give a number between 1 and 12"),
        (1, {"labels": "good,bad"}, "rows of 2 classes. Give a number between 2 and 12"),
        (-1, {}, "--train-examples -1: there are 12"),
    ):
        with pytest.raises(InputError, match=message):
            answers_task(train_examples=number, **given).load_dataset("train")
