"""In place of a ``Generator``, for tests of the service in front of it."""

from __future__ import annotations

import threading

from fairseq_peft.errors import InputError
from fairseq_peft.serving.generate import Written
from fairseq_peft.text import generation

#: Adapter -> the flags of generation that it has kept.
KEPT = {"legal": {"beam": 4, "lenpen": 0.6}, "news": {}}


class StubGenerator:
    """In place of a ``Generator``: it writes the adapter's name, the beams, and the text.

    Attributes:
        batches: the texts of each batch. num_begun: batches that were begun.
        open: batches are computed while it is set.
    """

    def __init__(self):
        self.adapters = list(KEPT)
        self.batches, self.num_begun, self.open = [], 0, threading.Event()
        self.open.set()

    def kept_of(self, name):
        return KEPT[name]

    def labels_of(self, name):
        return []

    def search_of(self, name, given):
        generation.check_each(given)
        return generation.combined(KEPT[name], given)

    def generate(self, texts, name, batch_size, **search):
        self.num_begun += 1
        assert self.open.wait(30) and len(texts) <= batch_size
        if "refused" in texts:
            raise InputError("This text is refused.")
        self.batches.append(texts)
        return [Written(f"{name} {search.get('beam', 5)} {text}", -1.0, []) for text in texts]
