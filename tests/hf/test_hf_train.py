"""Fine-tuning with Hugging Face's library: what holds without it. tests/parity trains."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import hf_data
import numpy as np
import pytest
import torch
from helpers import ROOT, TINY

from fairseq_peft import cli
from fairseq_peft.errors import InputError
from fairseq_peft.hf import start, train
from fairseq_peft.hf.batches import Batches
from fairseq_peft.hf.train_record import Counter, Record
from fairseq_peft.runs import plan, predictions
from fairseq_peft.runs.choice import Choice
from fairseq_peft.sweeps import finetune_hf
from fairseq_peft.tasks.sentence_classification import SentenceClassificationTask


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    base, _ = hf_data.write(folder)
    assert cli.main(["to-hf", str(base / "model.pt"), str(folder / "converted"), "--no-check"]) == 0
    return folder


def options(place, **more):
    given = {"data": place / "demo", "base": place / "converted", "save_dir": place / "run"}
    return train.Options(**{**given, **more})


def test_batches_are_those_of_the_task(place):
    """Rows, cuts, padding and order, over three epochs; and those of evaluation."""
    asked = options(place)
    _, datasets = train.load_data(asked, start.read(asked.base))
    assert max(datasets["train"].sizes) == TINY["max_positions"]  # some are cut
    limits = {"max_epoch": 3, "max_update": 0, "update_freq": [1]}
    task = SimpleNamespace(cfg=SimpleNamespace(train_subset="train", **limits))
    for split, seed in (("train", 7), ("valid", None)):
        dataset = datasets[split]
        dataset.split = split
        iterator = SentenceClassificationTask.get_batch_iterator(
            task, dataset, max_sentences=8, seed=7
        )
        batches = Batches(dataset, 8, seed)
        orders = []
        for _ in range(3):
            fairseqs = [b["id"].tolist() for b in iterator.next_epoch_itr(shuffle=split == "train")]
            own = list(batches)
            assert own == fairseqs and len(own) == len(batches)
            orders.append(own)
        assert (orders[0] == orders[1]) == (split == "valid")


def test_the_start_is_that_of_a_run_of_fairseq(place):
    """Head and LoRA's A come from the seed alone, and another seed has others."""
    base = start.read(place / "converted")
    one, same, other = (start.twin(base, "lora", seed, 2, lora_rank=2) for seed in (1, 1, 2))
    name = "encoder.sentence_encoder.layers.0.self_attn.q_proj.lora_A"
    head = "classification_heads.sentence_classification_head.dense.weight"
    for tensor in (name, head):
        assert torch.equal(one.state_dict()[tensor], same.state_dict()[tensor])
        assert not torch.equal(one.state_dict()[tensor], other.state_dict()[tensor])


def test_counts_are_whole_over_batches():
    counter = Counter(2)
    for labels, loss in (([0, 1, 1], 0.5), ([0], 1.5)):
        inputs = {"labels": torch.tensor(labels), "attention_mask": torch.ones(len(labels), 4)}
        counter.add(inputs, torch.tensor([[0.0, 1.0]] * len(labels)), loss)
    found = counter.scores()
    assert found["loss"] == pytest.approx((3 * 0.5 + 1.5) / 4)  # a mean over rows, not batches
    assert (found["num_correct"], found["num_examples"]) == (2, 4)
    assert counter.num_tokens == 16 and np.isclose(found["accuracy"], 0.5)


class LengthModel(torch.nn.Module):
    """Class 1 for rows with an odd number of tokens, or, less than ``always``, for all."""

    def __init__(self, always=0):
        super().__init__()
        self.always = always

    def save_pretrained(self, folder):
        (folder / "always").write_text(str(self.always))

    def forward(self, attention_mask, labels, input_ids):
        length = attention_mask.sum(1)
        logits = torch.nn.functional.one_hot(length % 2 | (length < self.always), 2).float()
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)


def recording(asked, folder, datasets, choice=None):
    log = SimpleNamespace(directory=folder, lines=[])
    log.epoch = log.lines.append
    return Record(log, asked, datasets, choice or Choice(), ["0", "1"])


def an_epoch(record, epoch, model=None):
    """An epoch of one update, and its evaluation of ``model``."""
    record.begin_epoch(2)
    labels = torch.tensor([0, 1])
    inputs = {"labels": labels, "attention_mask": torch.ones(2, 4)}
    record.step(inputs, torch.eye(2), torch.tensor(0.5))
    record.end_epoch(
        SimpleNamespace(
            model=model or LengthModel(),
            state=SimpleNamespace(global_step=epoch),
            lr_scheduler=SimpleNamespace(get_last_lr=lambda: [0.1]),
            _prepare_inputs=lambda batch: batch,
            compute_loss_context_manager=contextlib.nullcontext,
        ),
        epoch,
    )


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "mcc", "loss", "f1_1"])
def test_the_epoch_is_chosen_as_in_a_run_of_fairseq(place, tmp_path, metric):
    asked = options(place, save_dir=tmp_path, batch_size=3, metric=metric)
    _, datasets = train.load_data(asked, start.read(asked.base))
    choice = train.choose(asked, ["0", "1"])
    record = recording(asked, tmp_path, datasets, choice)
    kept = {}
    for epoch, always in enumerate((0, 99, 20, 20, 10, 99), start=1):
        an_epoch(record, epoch, LengthModel(always))
        kept[epoch] = always
    best = choice.best_of(record.log.lines)
    values = [choice.value(line["subsets"]) for line in record.log.lines]
    assert len(set(values)) > 2 and best["epoch"] == record.best.update
    assert (tmp_path / "checkpoint_best" / "always").read_text() == str(kept[best["epoch"]])


def test_an_unknown_metric_is_one_sentence(place):
    with pytest.raises(InputError, match=r"--metric f1 is unknown; .* f1_<class> \(f1_0, f1_1\)"):
        train.choose(options(place, metric="f1"), ["0", "1"])


def test_predictions_are_kept_in_the_order_of_the_data(place, tmp_path):
    asked = options(place, save_dir=tmp_path, batch_size=3)
    _, datasets = train.load_data(asked, start.read(asked.base))
    an_epoch(recording(asked, tmp_path, datasets), 4)
    found = predictions.read(predictions.path_of(tmp_path, 4))
    assert found.epoch == 4 and list(found.target) == ["valid", "test"]
    for split, dataset in datasets.items():
        if split != "train":
            assert len(set(dataset.sizes % 2)) == 2  # both classes
            assert found.predicted[split].tolist() == (dataset.sizes % 2).tolist()
            assert found.target[split].tolist() == [
                dataset[i]["target"] for i in range(len(dataset))
            ]


def test_bad_bases_are_refused(place, tmp_path):
    with pytest.raises(InputError, match="has no config.json"):
        start.read(tmp_path)
    classifier = tmp_path / "classifier"
    classifier.mkdir()
    config = json.loads((place / "converted" / "config.json").read_text())
    for name in ("dict.txt", "model.safetensors"):
        (classifier / name).write_bytes((place / "converted" / name).read_bytes())
    config["architectures"] = ["RobertaForSequenceClassification"]
    (classifier / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="holds a classifier"):
        start.read(classifier)
    (classifier / "config.json").write_text("{")
    with pytest.raises(InputError, match="no JSON"):
        start.read(classifier)


def test_a_base_of_another_dictionary_is_refused(place, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in (place / "converted").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    lines = (other / "dict.txt").read_text().splitlines()
    (other / "dict.txt").write_text("\n".join(lines[1:] + lines[:1]) + "\n")
    asked = options(place, base=other)
    with pytest.raises(InputError, match="is not the dictionary of"):
        train.load_data(asked, start.read(other))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "0"], "--epochs 0"),
        (["--dropout", "1"], "--dropout 1.0"),
        (["--warmup", "101"], "--warmup 101"),
        (["--warmup", "nan"], "--warmup nan"),
        (["--lr", "nan"], "--lr nan"),
        (["--method", "lora", "--lora-alpha", "inf"], "--lora-alpha inf"),
        (["--lora-rank", "4"], "would be ignored"),
        (["--subsets", "test"], "--subsets test"),
        (["--precision", "fp16"], "--precision fp16 is not for this trainer"),
    ],
)
def test_bad_flags_are_one_sentence(flags, message, place, capsys):
    words = ["finetune-hf", str(place / "demo"), str(place / "converted"), "--save-dir", "unused"]
    assert cli.main([*words, *flags]) == 1
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "said", "updates"),
    [("2.5", "2.5", 5), ("6", "6", 12), ("6.0", "6", 12), ("0", "0", 0)],
)
def test_warmup_is_per_cent_as_for_finetune(place, tmp_path, monkeypatch, text, said, updates):
    """Parts of one, too; a whole number is the plan's that it always was."""
    asked = []
    monkeypatch.setattr(finetune_hf, "run", lambda options, *_: asked.append(options) or "done")
    words = [str(place / "demo"), str(place / "converted"), "--save-dir", str(tmp_path / "run")]
    assert cli.main(["finetune-hf", *words, "--precision", "fp32", "--warmup", text]) == 0
    (options,) = asked
    assert f"{options.warmup}" == said
    assert plan.warmup_updates(200, options.warmup) == updates


def test_a_run_has_a_plan_and_another_one_is_refused(place, tmp_path, monkeypatch):
    """Training itself takes the library; here it ends at once."""
    begun = []

    def diverge(asked):
        begun.append(asked.lr)
        (asked.save_dir / "run.json").touch()
        raise InputError("The loss is not finite.")

    monkeypatch.setattr(train, "run", diverge)
    monkeypatch.setattr(train, "prepare", lambda asked: None)
    asked = options(place, save_dir=tmp_path / "run")
    with pytest.raises(InputError, match="not finite"):
        finetune_hf.run(asked)
    assert plan.read(tmp_path / "run").lr == "0.0001"
    assert "error: The loss is not finite." in (tmp_path / "run" / "train.log").read_text()
    other = replace(asked, lr=1e-3)
    with pytest.raises(InputError, match="holds another run: lr 0.0001, now 0.001") as refusal:
        finetune_hf.run(other)
    assert "--extend" not in str(refusal.value)
    with pytest.raises(InputError, match="not finite"):
        finetune_hf.run(other, "redo")
    assert begun == [1e-4, 1e-3]
    assert plan.read(tmp_path / "run").lr == "0.001"


def test_redo_throws_nothing_away_for_a_run_that_cannot_start(place, tmp_path, monkeypatch):
    def train_a_little(asked):
        (asked.save_dir / "run.json").write_text("{}")
        raise InputError("It was stopped.")

    monkeypatch.setattr(train, "run", train_a_little)
    monkeypatch.setattr(start, "libraries", lambda method: {})
    asked = options(place, save_dir=tmp_path / "run")
    with pytest.raises(InputError, match="was stopped"):
        finetune_hf.run(asked)

    def there():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = there()
    (tmp_path.parent / "empty").mkdir(exist_ok=True)
    for change, message in (
        ({"metric": "f1_typo"}, "--metric f1_typo is unknown"),
        ({"subsets": ("valid", "none")}, "none"),
        ({"base": tmp_path.parent / "empty"}, "has no config.json"),
    ):
        with pytest.raises(InputError) as refusal:
            finetune_hf.run(replace(asked, **change), "redo")
        told = str(refusal.value)
        assert f"{tmp_path / 'run'} is as it was, for the new run cannot start: " in told
        assert message in told and there() == before


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({}, "nothing to start from"),
        ({"BASE": "a.pt", "HF_BASE": "b"}, "both set"),
        ({"BASE": "a.pt", "METHOD": "adapter"}, "METHOD=adapter is unknown here"),
        ({"BASE": "a.pt", "PATIENCE": "3"}, "PATIENCE=3 would be ignored"),
        ({"BASE": "a.pt", "DATA": "nowhere", "HF_PACKAGES": "."}, "label/train.idx does not exist"),
    ],
)
def test_the_script_refuses_bad_knobs(knobs, message, place):
    given = {"DATA": str(place / "demo"), "PYTHON": sys.executable, **knobs}
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "finetune_hf.sh")],
        env={**os.environ, "RUNS": str(place / "runs"), **given},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (place / "runs").exists()
