"""Classes of raw texts: a base, one adapter or many, and what turns text into the tokens they were
trained on.

    classifier = fairseq_peft.Classifier.load("model.pt", "runs/.../adapter")
    classifier.predict(["un texte", "un autre"]).labels

What is predicted is what validation predicts of the same rows: text is read as data preparation and
``SentenceDataset`` read it, and the model is in eval mode. Rows are sorted by length for the model,
never for the caller.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np
import torch

from fairseq_peft import compiling
from fairseq_peft import precision as precisions
from fairseq_peft.data.buckets import bucket_batches
from fairseq_peft.errors import InputError
from fairseq_peft.fairseq_fixes import memory
from fairseq_peft.scores import LABELS, NUMBER
from fairseq_peft.serving import devices, names, served
from fairseq_peft.serving.separate_models import SeparateModels
from fairseq_peft.serving.shared_base import SharedBase
from fairseq_peft.text.rows import SEPARATOR

#: Largest batch, in rows, and in tokens with padding: beyond it memory grows and speed does not.
BATCH_SIZE, MAX_TOKENS = 64, 2048
#: Rows that are read, and sorted by length, before the next are: few first, so that the first
#: answers come soon, then more, so that there is little padding.
FIRST_WINDOW, WINDOW = 64, 2048
#: What the adapter is called that ``Classifier.load`` is given.
DEFAULT = "default"

#: A text, or a pair of texts.
Text = Union[str, Sequence[str]]


class Prediction(NamedTuple):
    """What is predicted of one row.

    Attributes:
        label: the most probable class; where a row has any number of labels, those that are more
            probable than not, with ``|`` between them; where it has a number, that number as text.
        probability: that of the class, or of just these labels; None of a number.
        probabilities: class -> its probability; empty of a number.
    """

    label: str
    probability: Optional[float]
    probabilities: dict[str, float]

    @property
    def value(self) -> Optional[float]:
        """The number; None of classes and labels."""
        return float(self.label) if self.probability is None else None

    def as_dict(self) -> dict:
        """As JSON has it: all fields of a class or of labels; ``value`` of a number."""
        return self._asdict() if self.value is None else {"value": self.value}


def answer(logits: torch.Tensor, labels: Sequence[str], kind: str) -> Prediction:
    """What logits (K,) say of a row."""
    if kind == NUMBER:
        return Prediction(f"{float(logits[0]):.9g}", None, {})  # all digits of a float32
    if kind == LABELS:
        probabilities = logits.sigmoid().tolist()
        chosen = (logits > 0).tolist()
        of_this = [p if yes else 1 - p for p, yes in zip(probabilities, chosen)]
        label = SEPARATOR.join(name for name, yes in zip(labels, chosen) if yes)
        return Prediction(label, math.prod(of_this), dict(zip(labels, probabilities)))
    probabilities = logits.softmax(-1).tolist()
    best = int(logits.argmax())
    return Prediction(labels[best], probabilities[best], dict(zip(labels, probabilities)))


class Predictions(list):
    """A list of ``Prediction``, one a row, in the order of the rows.

    Args:
        rows: those.
        classes: what they are of, where that is known without a row.
    """

    def __init__(self, rows=(), classes: Sequence[str] = ()):
        super().__init__(rows)
        self._classes = classes

    @property
    def labels(self) -> list[str]:
        return [row.label for row in self]

    @property
    def probabilities(self) -> np.ndarray:
        """(N, classes), in the order of ``Classifier.labels``.

        Raises:
            InputError: rows have different classes, because their adapters have.
        """
        if len({tuple(row.probabilities) for row in self}) > 1:
            raise InputError(
                "The rows have different classes, so their probabilities are no table. Take those "
                "of each row."
            )
        if not self:
            return np.zeros((0, len(self._classes)), dtype=np.float32)
        return np.array([list(row.probabilities.values()) for row in self], dtype=np.float32)


class Classifier:
    """A base and its adapters, ready to classify; made by ``Classifier.load``.

    Not for two threads at once.
    """

    def __init__(self, model, precision: str, device: str, compile: str = "off"):
        compiling.check(compile)
        compiling.check_device(compile, torch.device(device).type == "cuda")
        compiling.install(model, compile)
        self._shared = shared(model.to(device), compile != "off")
        self._readers = {}
        self._base = None
        self.device = torch.device(device)
        self._allow_other_base = False
        self.precision = precision
        self._precision_given, self._trained_in = True, {}
        precisions.warn_if_slow(precision, self.device.type == "cuda")  # trained elsewhere, maybe

    @classmethod
    def load(
        cls,
        base: Union[str, Path, None],
        adapter: Union[str, Path, None] = None,
        *,
        name: str = DEFAULT,
        data: Union[str, Path, None] = None,
        bpe: Optional[str] = None,
        precision: Optional[str] = None,
        device: str = "cpu",
        compile: str = "off",
        allow_other_base: bool = False,
    ) -> Classifier:
        """Load a base and an adapter, or a checkpoint that is fine-tuned as a whole.

        Args:
            base: a fairseq checkpoint; None for an adapter folder that holds a whole model.
            adapter: an adapter folder; without it, ``base`` must have a classification head.
            name: what the adapter is called.
            data: for a checkpoint without folder: where its dict.txt and sentencepiece model are,
                or the files of another ``--bpe`` (its data folder by default).
            bpe: for a checkpoint without folder: its ``--bpe`` (what ``data`` says by default).
            precision: fp32, bf16 or fp16 (as in training by default: then all adapters have to be
                trained in the same).
            device: cpu, cuda, ...
            compile: off, on or graphs: as ``--compile`` (``compiling.py``). The rows of each
                adapter are a pass of their own then.
            allow_other_base: take a base that the adapter was not trained on.

        Raises:
            InputError: a file or the device cannot be used, or they do not belong together.
        """
        devices.check(device)
        if adapter is None:
            if base is None:
                raise InputError("There is neither a base nor an adapter. Give at least one.")
            model, head, reader, trained = served.from_checkpoint(base, data, bpe)
            own = cls(model, precision or trained, device, compile)
            return own._whole(head, reader, name)._ready()
        if bpe is not None:
            raise InputError(
                f"--bpe {bpe} would be ignored: the adapter folder says how it reads text. Leave "
                "one of the two out."
            )
        if data is not None:
            raise InputError(
                f"The data folder {data} would be ignored: the adapter folder has its own "
                "dictionary. Leave one of the two out."
            )
        folder = served.open_folder(adapter)
        given = precision is not None
        precision = precision or served.precision_of(folder)
        if folder.description["complete"]:
            if base is not None:
                raise InputError(
                    f"{base} would be ignored: {adapter} holds a whole model. Leave the base out."
                )
            model, head, reader = served.from_complete(folder)
            return cls(model, precision, device, compile)._whole(head, reader, name)._ready()
        found = served.Base(base, folder)
        own = cls(found.model, precision, device, compile)
        own._base, own._allow_other_base = found, allow_other_base
        own._precision_given = given
        own.add(name, folder)
        return own._ready()

    def _whole(self, head, reader, name):
        """With the model's own head as the only adapter."""
        names.check_free(self._readers, name)
        self._shared.add(name, lambda model: model.classification_heads[head])
        self._readers[name] = reader
        return self

    def _ready(self):
        memory.give_back()
        return self

    # Adapters

    @property
    def adapters(self) -> list[str]:
        """The names of the adapters."""
        return list(self._readers)

    @property
    def labels(self) -> list[str]:
        """The classes, where there is one adapter; else see ``labels_of``."""
        return self.labels_of(self._only())

    def labels_of(self, adapter: str) -> list[str]:
        """The classes of an adapter, in the order of the model's outputs."""
        return list(self._reader(adapter).labels)

    @property
    def kind(self) -> str:
        """What is predicted of a row, where there is one adapter; else see ``kind_of``."""
        return self.kind_of(self._only())

    def kind_of(self, adapter: str) -> str:
        """What an adapter predicts of a row: ``classes``, ``labels`` or ``number``."""
        return self._reader(adapter).kind

    @property
    def num_texts(self) -> int:
        """Texts of a row, where there is one adapter; else see ``num_texts_of``."""
        return self.num_texts_of(self._only())

    def num_texts_of(self, adapter: str) -> int:
        """Texts of a row of an adapter, 1 or 2."""
        return self._reader(adapter).num_texts

    @property
    def num_cut(self) -> int:
        """Rows so far that were longer than the model reads."""
        return sum(encoder.num_cut for encoder in self._encoders())

    @property
    def num_unknown(self) -> int:
        """Rows so far with pieces that are not in the dictionary."""
        return sum(encoder.num_unknown for encoder in self._encoders())

    def _encoders(self):
        return {id(reader.encoder): reader.encoder for reader in self._readers.values()}.values()

    def check(self, texts: Iterable[Text], adapter: str) -> None:
        """Raise InputError at the first row that is none for the adapter."""
        for number, row in enumerate(texts, start=1):
            self._reader(adapter).check(row, number)

    def add(self, name: str, folder) -> None:
        """Add the adapter in a folder; the base stays as it is.

        Raises:
            InputError: the name is taken or no name, the folder does not fit the base, or it was
                trained in another precision than those before it, and none was given.
        """
        names.check_free(self._readers, name)
        if self._base is None:
            raise InputError(
                "This classifier is a checkpoint fine-tuned as a whole, which is no base for "
                "adapters. Load the base that they were trained on."
            )
        folder = served.open_folder(folder)
        served.check_shares(folder)
        trained_in = {**self._trained_in, name: served.precision_of(folder)}
        if not self._precision_given:
            served.check_precisions(trained_in)
        reader = self._base.reader(folder, self._allow_other_base)
        if not self._precision_given:
            self._compute_in(trained_in[name])
        self._shared.add(name, lambda model: served.build(model, folder).to(self.device))
        self._readers[name], self._trained_in = reader, trained_in

    def remove(self, name: str) -> None:
        """Remove an adapter; the base stays as it is."""
        self._reader(name)
        self._shared.remove(name)
        del self._readers[name]
        self._trained_in.pop(name, None)

    @property
    def precision(self) -> str:
        """fp32, bf16 or fp16: layers under autocast, weights in fp32."""
        by_type = {precisions.half(name): name for name in precisions.NAMES[1:]}
        return by_type[next(self._shared.halves()).half_dtype]

    @precision.setter
    def precision(self, value: str) -> None:
        if value not in precisions.NAMES[1:]:
            where = f" {precisions.INT8}" if value == "int8" else ""
            raise InputError(f"Precision {value!r} is unknown: give fp32, bf16 or fp16.{where}")
        self._compute_in(value)
        self._precision_given = True

    def _compute_in(self, value):
        for half in self._shared.halves():
            half.half_dtype = precisions.half(value)

    def _reader(self, name):
        return names.of(self._readers, name)

    def _only(self):
        return names.only(self._readers)

    # Prediction

    def predict(
        self,
        texts: Iterable[Text],
        adapter: Union[str, Sequence[str], None] = None,
        batch_size: int = BATCH_SIZE,
    ) -> Predictions:
        """The class of each text, or pair of texts.

        Args:
            texts: rows; any string is one, the empty one, too.
            adapter: name of the adapter, or one a row; None for the only one there is.
            batch_size: rows that go through the model at once, at most.

        Raises:
            InputError: an adapter is unknown, or a row has not as many texts as it was trained on.
        """
        rows = list(self._rows(self.logits(texts, adapter, batch_size)))
        return Predictions(rows, () if rows else self._classes_of(adapter))

    def _classes_of(self, adapter) -> list[str]:
        """The columns of a table of probabilities; none where several adapters may be meant."""
        known = [adapter] if isinstance(adapter, str) else list(self._readers)
        if len(known) > 1 or self.kind_of(known[0]) == NUMBER:
            return []
        return self.labels_of(known[0])

    def stream(
        self,
        texts: Iterable[Text],
        adapter: Union[str, Sequence[str], None] = None,
        batch_size: int = BATCH_SIZE,
        window: int = WINDOW,
    ) -> Iterator[Prediction]:
        """As ``predict``, one row after the other; reads no more than ``window`` texts ahead, and
        fewer at first."""
        first = min(FIRST_WINDOW, window)
        return self._rows(self.logits(texts, adapter, batch_size, window, first))

    def _rows(self, found) -> Iterator[Prediction]:
        for name, logits in found:
            reader = self._readers[name]
            yield answer(logits, reader.labels, reader.kind)

    def logits(
        self,
        texts: Iterable[Text],
        adapter: Union[str, Sequence[str], None] = None,
        batch_size: int = BATCH_SIZE,
        window: int = WINDOW,
        first_window: Optional[int] = None,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """(adapter, logits (classes,)) of each row, in order.

        Args:
            window: rows that are sorted by length together.
            first_window: those of the first window; each has twice as many as the one before.
        """
        names.check_rows(texts, batch_size, window)
        for rows in windows(self._named(texts, adapter), first_window or window, window):
            by_row = [name for _, name in rows]
            items = self._items(rows)
            found = [None] * len(rows)
            sizes = [len(item) for item in items]
            for batch in bucket_batches(sizes, batch_size, MAX_TOKENS):
                scores = self._forward([items[i] for i in batch], [by_row[i] for i in batch])
                for i, logits in zip(batch, scores):
                    found[i] = logits
            yield from ((name, logits.cpu()) for name, logits in zip(by_row, found))

    def _named(self, texts, adapter):
        """(texts of a row, name of its adapter), with both checked."""
        for number, row, name in names.of_rows(self._readers, texts, adapter):
            yield self._reader(name).check(row, number), name

    def _items(self, rows):
        """The tokens of each row; adapters that read alike are read together."""
        found = [None] * len(rows)
        readers = {}
        for i, (_, name) in enumerate(rows):
            readers.setdefault(id(self._readers[name].encoder), []).append(i)
        for indices in readers.values():
            encoder = self._readers[rows[indices[0]][1]].encoder
            limits = [self._readers[rows[i][1]].max_tokens for i in indices]
            texts = [rows[i][0] for i in indices]
            for i, item in zip(indices, encoder.items(texts, limits, torch.get_num_threads())):
                found[i] = item
        return found

    @torch.inference_mode()
    def _forward(self, items, names):
        """Logits of a batch of tokens (lists), padded at the right."""
        longest = max(map(len, items))
        tokens = np.full((len(items), longest), self._shared.padding, dtype=np.int64)
        for line, item in zip(tokens, items):
            line[: len(item)] = item
        return self._shared.logits(torch.from_numpy(tokens).to(self.device), names)


def shared(model, compiles: bool = False):
    """A base for adapters: of one encoder, whose rows switches cut, or of any other model, or of
    one whose layers are compiled."""
    one_encoder = hasattr(model.encoder, "sentence_encoder")
    cuts = one_encoder and not compiles
    return SharedBase(model, served.ROOT) if cuts else SeparateModels(model)


def windows(rows, size, largest):
    """Consecutive lists of rows: of ``size`` rows, then of twice as many, up to ``largest``."""
    rows = iter(rows)
    while window := list(itertools.islice(rows, size)):
        yield window
        size = min(2 * size, largest)
