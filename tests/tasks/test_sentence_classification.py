"""The task's parts: classes by name, batches by epoch, counts that must add up, where to start."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import HEAD, random_rows, task_config, write_data

torch = pytest.importorskip("torch")
fairseq = pytest.importorskip("fairseq")

from fairseq.logging import metrics  # noqa: E402

import fairseq_peft.plugin  # noqa: E402, F401
from fairseq_peft.criterions.sentence_classification import (  # noqa: E402
    SentenceClassificationCriterion,
)
from fairseq_peft.data import checks  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.fairseq_fixes import last_batch  # noqa: E402
from fairseq_peft.runs import log as run_log  # noqa: E402
from fairseq_peft.runs import predictions  # noqa: E402
from fairseq_peft.runs.choice import Best, Choice  # noqa: E402
from fairseq_peft.tasks.predictions import Collector  # noqa: E402
from fairseq_peft.tasks.running import Run  # noqa: E402
from fairseq_peft.tasks.sentence_classification import SentenceClassificationTask  # noqa: E402


@pytest.fixture
def make_task(data_folder):
    def make(data=data_folder, max_tokens=40, **more):
        task = SentenceClassificationTask.setup_task(task_config(data, **more))
        task.max_tokens = max_tokens
        return task

    return make


# Classes


def test_classes_follow_the_label_dictionary(make_task, tmp_path):
    rows = random_rows()
    task = make_task(write_data(tmp_path, rows, ["good", "bad"]))
    assert task.labels == ["good", "bad"]
    dataset = task.load_dataset("valid")
    named = [task.labels[dataset[i]["target"]] for i in range(len(dataset))]
    assert named == [label for _, label in rows["valid"]]


def test_checkpoints_order_wins_over_the_folders(make_task):
    task = make_task()
    before = [item["target"] for item in task.load_dataset("valid")]
    assert task.labels == ["bad", "good"]
    task.load_state_dict({"labels": ["good", "ugly", "bad"]})
    assert task.labels == ["good", "ugly", "bad"]
    after = [item["target"] for item in task.load_dataset("valid")]
    assert after == [{0: 2, 1: 0}[target] for target in before]


def test_class_that_the_checkpoint_lacks_is_refused(make_task):
    with pytest.raises(InputError, match="class 'bad', the checkpoint knows good, fine"):
        make_task().load_state_dict({"labels": ["good", "fine"]})


def test_another_dictionary_is_refused(make_task, tmp_path):
    state = make_task().state_dict()
    make_task().load_state_dict(state)
    other = make_task(write_data(tmp_path, random_rows(), ["bad", "good"], words=31))
    with pytest.raises(InputError, match="is not the dictionary that the checkpoint"):
        other.load_state_dict(state)
    other.load_state_dict({"labels": ["bad", "good"]})  # a checkpoint that does not say


def test_padding_words_are_no_classes():
    dictionary = fairseq.data.Dictionary()
    for name in ("1", "0", "madeupword0000", "madeupword0001", "<mask>"):
        dictionary.add_symbol(name)
    assert checks.class_names(dictionary) == ["1", "0"]


def test_pairs_are_read(make_task, tmp_path):
    rows = {"train": [([1, 2], [3], "bad"), ([4], [5, 6], "good")]}
    task = make_task(write_data(tmp_path, rows, ["bad", "good"], pairs=True))
    assert task.load_dataset("train")[0]["tokens"] == [0, 5, 6, 2, 2, 7, 2]


# Batches


def batches(task, split, seed=1, epoch=1):
    iterator = task.get_batch_iterator(
        task.load_dataset(split), max_sentences=8, seed=seed, epoch=epoch
    )
    return [batch["id"].tolist() for batch in iterator.next_epoch_itr(shuffle=False)]


def test_training_batches_change_with_the_epoch_and_others_do_not(make_task):
    task = make_task()
    assert batches(task, "train") == batches(task, "train")
    assert batches(task, "train") != batches(task, "train", epoch=2)
    assert batches(task, "train") != batches(task, "train", seed=2)
    assert batches(task, "valid") == batches(task, "valid", seed=2, epoch=2)
    for split, rows in (("train", 67), ("valid", 21)):
        assert sorted(sum(batches(task, split), [])) == list(range(rows))


def test_train_subset_may_have_another_name(make_task):
    task = make_task(train_subset="test")
    assert batches(task, "test") != batches(task, "test", epoch=2)
    assert batches(task, "train") == batches(task, "train", epoch=2)


@pytest.mark.parametrize("num_shards", [1, 2, 4])
def test_shards_hold_every_row_once(make_task, num_shards):
    task = make_task()
    seen = []
    for shard in range(num_shards):
        iterator = task.get_batch_iterator(
            task.load_dataset("valid"), max_sentences=8, num_shards=num_shards, shard_id=shard
        )
        shard_batches = list(iterator.next_epoch_itr(shuffle=False))
        assert len(shard_batches) == -(-3 // num_shards)  # a shard without a batch gets {}
        seen += sum((batch["id"].tolist() for batch in shard_batches if batch), [])
    assert sorted(seen) == list(range(21))


# Metrics


@pytest.mark.parametrize(
    "flags, planned",
    [
        ({"max_epoch": 3}, 27),
        ({"max_epoch": 3, "update_freq": [2]}, 15),
        ({"max_epoch": 3, "update_freq": [1, 2]}, 9 + 5 + 5),
        ({"max_epoch": 3, "max_update": 20}, 20),
        ({"max_epoch": 0, "max_update": 40}, 40),
        ({"max_epoch": 0}, 0),
        ({"max_epoch": 3, "skip_remainder_batch": True}, 24),
        ({"max_epoch": 3, "update_freq": [3, 4], "skip_remainder_batch": True}, 2 + 2 + 2),
    ],
)
def test_planned_updates_follow_the_flags(data_folder, flags, planned):
    """67 rows in batches of 8 are 9 updates an epoch, in whatever batches they are validated."""
    task = SentenceClassificationTask.setup_task(task_config(data_folder, **flags))
    task.max_tokens = 40
    with last_batch.training():
        task.get_batch_iterator(task.load_dataset("train"), max_sentences=8)
    assert task.planned_updates == planned
    task.get_batch_iterator(task.load_dataset("train"), max_sentences=64)  # --valid-subset train
    assert task.planned_updates == planned


class Oracle(torch.nn.Module):
    """Logits that say what ``predict(target)`` says, with a margin of 2."""

    def __init__(self, predict):
        super().__init__()
        self.predict = predict

    def forward(self, src_tokens, predicted, **kwargs):
        return 2.0 * torch.nn.functional.one_hot(predicted, 2), None

    def penalty(self):
        return None


def evaluate(task, split, predict, skip=0):
    """Run the criterion over a split and hand the sums to ``post_validate``."""
    criterion = SentenceClassificationCriterion(task, HEAD)
    dataset = task.load_dataset(split)
    iterator = task.get_batch_iterator(dataset, max_sentences=8)
    with metrics.aggregate(new_root=True) as agg:
        for sample in list(iterator.next_epoch_itr(shuffle=False))[skip:]:
            sample["net_input"]["predicted"] = predict(sample["target"])
            _, _, logged = task.valid_step(sample, Oracle(predict), criterion)
            task.reduce_metrics([logged], criterion)
    task.post_validate(None, {"num_updates": 3}, agg)


def right_but_first(target):
    return torch.cat([1 - target[:1], target[1:]])


def test_counts_are_exact_and_losses_in_nats(make_task, tmp_path):
    task = make_task()
    task.run = Run(str(tmp_path), ["valid", "test"], {"schema": 1}, Best(Choice()))
    task.begin_epoch(1, None)
    task.begin_valid_epoch(1, None)
    evaluate(task, "valid", right_but_first)
    scores = task.run.recorder.results["valid"]
    assert (scores["num_examples"], scores["num_correct"]) == (21, 18)
    right, wrong = (torch.log1p(torch.exp(torch.tensor(x))).item() for x in (-2.0, 2.0))
    assert scores["loss"] == pytest.approx((18 * right + 3 * wrong) / 21, rel=1e-5)


def test_rows_that_were_not_evaluated_fail_the_run(make_task):
    task = make_task()
    with pytest.raises(InputError, match="13 of the 21 rows of 'valid' were evaluated"):
        evaluate(task, "valid", right_but_first, skip=1)


def test_collapse_to_one_class_is_said(make_task, caplog):
    task = make_task()
    task.begin_valid_epoch(1, None)
    with caplog.at_level(logging.WARNING):
        evaluate(task, "valid", right_but_first)
        assert caplog.text == ""
        evaluate(task, "valid", torch.ones_like)
    assert "all 21 predictions on 'valid' are 'good'" in caplog.text


def test_an_epoch_is_one_line_after_the_last_subset(make_task, tmp_path):
    task = make_task()
    task.run = Run(str(tmp_path), ["valid", "test"], {"schema": 1}, Best(Choice()))
    task.begin_epoch(1, None)
    with metrics.aggregate("train"):
        criterion = SentenceClassificationCriterion(task, HEAD)
        sample = task.load_dataset("train").collater([task.load_dataset("train")[0]])
        sample["net_input"]["predicted"] = sample["target"]
        task.reduce_metrics([criterion(Oracle(None), sample)[2]], criterion)
        metrics.log_scalar("lr", 0.5, weight=0)
        task.begin_valid_epoch(1, None)
        evaluate(task, "valid", right_but_first)
        assert not (tmp_path / "metrics.jsonl").exists()
        evaluate(task, "test", right_but_first)
    metrics.reset_meters("train")
    (line,) = (json.loads(text) for text in (tmp_path / "metrics.jsonl").open())
    assert list(line["subsets"]) == ["valid", "test"] and line["lr"] == 0.5
    assert line["train"]["num_examples"] == 1 and line["num_updates"] == 3
    assert json.loads((tmp_path / "run.json").read_text()) == {"schema": 1}


def test_predictions_are_kept_in_the_order_of_the_data(make_task, tmp_path):
    """Batches come by length: the first row of each is the one that ``Oracle`` gets wrong."""
    task = make_task()
    collector = Collector()
    best = Best(Choice())
    task.run = SimpleNamespace(predictions=collector, best=best, end_subset=lambda *_: None)
    evaluate(task, "valid", right_but_first)
    evaluate(task, "test", right_but_first)
    collector.write(tmp_path, 3, 27)
    found = predictions.read(predictions.path_of(tmp_path, 27))
    assert found.epoch == 3 and list(found.target) == ["valid", "test"]
    for split in found.target:
        dataset = task.load_dataset(split)
        assert found.target[split].tolist() == [
            row["target"] for row in map(dataset.__getitem__, range(21))
        ]
        ids = batches(task, split)
        assert sum(ids, []) != list(range(21))
        wrong = sorted(batch[0] for batch in ids)
        assert np.flatnonzero(found.target[split] != found.predicted[split]).tolist() == wrong
        assert found.num_correct(split) == 18


def test_a_row_without_a_prediction_is_never_passed_over():
    collector = Collector()
    collector.add(torch.tensor([0, 2]), torch.tensor([1, 1]))
    with pytest.raises(RuntimeError, match="1 rows of 'valid' have no prediction"):
        collector.end_subset("valid", np.array([0, 1, 1]))


def test_summed_outputs_of_two_workers_are_those_of_one(make_task):
    """``logging_outputs_can_be_summed``: what fairseq does between processes."""
    task = make_task()
    criterion = SentenceClassificationCriterion(task, HEAD)
    dataset = task.load_dataset("test")
    logged = []
    for rows in (range(13), range(13, 21)):
        sample = dataset.collater([dataset[i] for i in rows])
        sample["net_input"]["predicted"] = right_but_first(sample["target"])
        logged.append(criterion(Oracle(None), sample)[2])
    summed = {
        key: torch.as_tensor(sum(log[key] for log in logged), dtype=torch.double)
        for key in logged[0]
    }
    results = []
    for outputs in (logged, [summed]):
        with metrics.aggregate(new_root=True) as agg:
            task.reduce_metrics(outputs, criterion)
        results.append(agg.get_smoothed_values())
    assert results[0] == pytest.approx(results[1])
    assert results[0]["accuracy"] == pytest.approx(19 / 21, abs=1e-6)


# Where training starts


@pytest.fixture
def start(tmp_path):
    def decide(**more):
        values = {
            "save_dir": str(tmp_path / "run"),
            "restore_file": "checkpoint_last.pt",
            "finetune_from_model": None,
            "from_scratch": False,
            **dict.fromkeys(
                ["reset_optimizer", "reset_lr_scheduler", "reset_meters", "reset_dataloader"], False
            ),
        }
        return checks.start(SimpleNamespace(**{**values, **more}))

    (tmp_path / "run").mkdir()
    (tmp_path / "base.pt").touch()
    decide.base, decide.last = str(tmp_path / "base.pt"), tmp_path / "run/checkpoint_last.pt"
    return decide


def test_start_of_a_first_launch(start):
    assert start(from_scratch=True) == (None, None, False)
    assert start(finetune_from_model=start.base) == (start.base, start.base, False)
    assert start(restore_file=start.base) == (start.base, start.base, False)


def test_start_of_a_resumed_run(start):
    start.last.touch()
    last = str(start.last)
    assert start(from_scratch=True) == (last, None, True)
    assert start() == (last, None, True)
    assert start(finetune_from_model="gone.pt") == (last, "gone.pt", True)
    assert start(restore_file=last) == (last, None, True)
    # fairseq reads a --restore-file of another name on every launch.
    assert start(restore_file=start.base) == (start.base, start.base, False)


def test_start_of_a_resumed_run_is_remembered(tmp_path):
    assert run_log.read_start(str(tmp_path)) == {}
    start = {"init": "pretrained", "base": "b\udcff", "task_bytes": 7}
    run_log.write_json(str(tmp_path / "run.json"), {**start, "seed": 1})
    assert run_log.read_start(str(tmp_path)) == start
    (tmp_path / "run.json").write_text("{")
    assert run_log.read_start(str(tmp_path)) == {}
