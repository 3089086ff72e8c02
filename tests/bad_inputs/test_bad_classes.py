"""Classes and dictionaries of a checkpoint that are not the data's, in training and validation;
and what looks bad and is not.
"""

from __future__ import annotations

import re

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from bench import LABELS, refused  # noqa: E402
from helpers import random_rows, write_data  # noqa: E402


def test_head_with_another_number_of_classes(bench, trained):
    def third(rows):
        rows["train"][0] = (rows["train"][0][0], "neutral")

    data = bench.rows(third, labels=[*LABELS, "neutral"])
    done = bench.train(data, finetune_from_model=trained)
    refused(bench, done, "knows 2 classes .*has 3", "--reset-head")
    done = bench.train(data, finetune_from_model=trained, reset_head=True)
    assert done.returncode == 0, done.stderr
    last = torch.load(bench.save_dir / "checkpoint_last.pt", weights_only=True)
    head = "classification_heads.sentence_classification_head.out_proj.weight"
    assert last["model"][head].shape[0] == 3
    # Resumed with the same flags, the head that was trained since is kept.
    done = bench.train(data, finetune_from_model=trained, reset_head=True, max_epoch=1)
    assert done.returncode == 0, done.stderr


def test_head_of_a_checkpoint_that_names_no_classes(bench, trained):
    """A stock checkpoint: the sizes are all there is to compare."""
    state = torch.load(trained, weights_only=True)
    del state["task_state"]
    torch.save(state, bench.folder / "base.pt")

    def third(rows):
        rows["train"][0] = (rows["train"][0][0], "neutral")

    data = bench.rows(third, labels=[*LABELS, "neutral"])
    done = bench.train(data, finetune_from_model=bench.folder / "base.pt")
    refused(bench, done, "has 2 classes, the data has 3", "--reset-head")


def test_head_of_other_classes(bench, trained):
    def rename(rows):
        for split in rows:
            rows[split] = [(words, label.upper()) for words, label in rows[split]]

    data = bench.rows(rename, labels=["BAD", "GOOD"])
    done = bench.train(data, finetune_from_model=trained)
    refused(bench, done, r"\(bad, good\)", r"\(BAD, GOOD\)", "--reset-head")


def test_validate_without_a_task(bench, trained):
    refused(bench, bench.validate(bench.data, trained, task=None), "--task is missing")


def test_validate_on_an_unknown_class(bench, trained):
    data = bench.rows(lambda rows: None, labels=[*LABELS, "ugly"])
    refused(bench, bench.validate(data, trained), "class 'ugly'.* knows bad, good")


def test_validate_with_another_dictionary(bench, trained):
    data = bench.own_data()
    lines = (data / "input0/dict.txt").read_text().splitlines()
    (data / "input0/dict.txt").write_text("\n".join(reversed(lines)) + "\n")
    refused(bench, bench.validate(data, trained), "is not the dictionary that the checkpoint")


def test_validate_on_a_missing_split(bench, trained):
    data = bench.own_data()
    for path in data.rglob("valid.*"):
        path.unlink()
    refused(bench, bench.validate(data, trained), "has no split 'valid'")


def test_dictionary_that_lists_the_mask(bench):
    """31,995 lines make 32,000 rows; so do 31,996 that list <mask> themselves, at the end."""
    data = bench.own_data()
    with open(data / "input0/dict.txt", "a") as file:
        file.write("<mask> 0\n")
    done = bench.train(data)
    assert done.returncode == 0, done.stderr


def test_classes_in_another_order_keep_their_outputs(bench, trained):
    """The checkpoint's order wins over that of label/dict.txt, for training on and for scoring."""
    rows = random_rows()
    data = write_data(bench.folder / "data", rows, ["good", "bad"])
    a, b = (bench.validate(folder, trained) for folder in (bench.data, data))
    line = r"valid on 'valid' subset \| (.*)"
    assert a.returncode == b.returncode == 0, b.stderr
    assert re.search(line, a.stdout)[1] == re.search(line, b.stdout)[1]
    done = bench.train(data, finetune_from_model=trained)
    assert done.returncode == 0, done.stderr
    last = torch.load(bench.save_dir / "checkpoint_last.pt", weights_only=True)
    assert last["task_state"]["labels"] == ["bad", "good"]
