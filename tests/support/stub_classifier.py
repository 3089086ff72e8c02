"""In place of a ``Classifier``, for tests of the service in front of it."""

from __future__ import annotations

import threading
import time

import torch

from fairseq_peft.scores import CLASSES, LABELS, NUMBER
from fairseq_peft.serving.predict import Predictions, answer
from fairseq_peft.serving.served import Reader

KINDS = {"books": CLASSES, "films": CLASSES, "tags": LABELS, "stars": NUMBER, "both": CLASSES}


class Stub:
    """In place of a ``Classifier``: a row's logits are the lengths of its texts.

    Attributes:
        batches: the adapters of each batch. open: batches are computed while it is set.
    """

    def __init__(self, adapters=tuple(KINDS)):
        self.adapters = list(adapters)
        self.batches, self.open = [], threading.Event()
        self.open.set()

    def kind_of(self, name):
        return KINDS[name]

    def labels_of(self, name):
        return ["bad", "good"]

    def num_texts_of(self, name):
        return 2 if name == "both" else 1

    def check(self, rows, name):
        reader = Reader(("bad", "good"), None, 40, self.num_texts_of(name))
        for number, row in enumerate(rows, start=1):
            reader.check(row, number)

    def predict(self, rows, names, batch_size):
        assert self.open.wait(30) and len(rows) <= batch_size
        if "broken" in rows:
            raise RuntimeError("broken")
        self.batches.append(names)
        return Predictions(expected(name, row) for row, name in zip(rows, names))


def expected(name, row):
    texts = row if name == "both" else (row, "")
    logits = torch.tensor([float(len(text)) for text in texts])
    return answer(logits, ["bad", "good"], KINDS[name])


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
