"""Texts from texts: a base and one adapter or many, of any of fairseq's tasks that answers in text,
and of Hugging Face's models.

    generator = fairseq_peft.Generator.load("base.pt", "runs/en-fr/adapter")
    generator.generate(["a text", "another"])[0].text

What is written is what ``fairseq-generate`` writes: its task reads, its generator searches. Each
adapter is a model of its own around the base's tensors, which are in memory once; rows of one
adapter go through it together, sorted by length.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import torch

from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.adapters.folder import AdapterFolder
from fairseq_peft.data.buckets import bucket_batches
from fairseq_peft.errors import InputError
from fairseq_peft.scores import CLASSES
from fairseq_peft.serving import devices, names, predict, writers
from fairseq_peft.serving.predict import Prediction, windows
from fairseq_peft.text import generation

#: Largest batch, in rows, and rows that are read, and sorted by length, before the next are.
BATCH_SIZE, FIRST_WINDOW, WINDOW = 16, 16, 512
#: What the adapter is called that ``Generator.load`` is given.
DEFAULT = "default"


class Written(NamedTuple):
    """What is written for one row.

    Attributes:
        text: without special tokens.
        score: fairseq's: log likelihood in nats, by the number of tokens to the power of lenpen.
        tokens: token ids, the end among them; none for an empty text.
    """

    text: str
    score: float
    tokens: list[int]

    def as_dict(self) -> dict:
        """As JSON has it."""
        return {"text": self.text, "score": self.score}


NOTHING = Written("", 0.0, [])


class Generator:
    """A base and its adapters, ready to write; made by ``Generator.load``.

    Not for two threads at once.
    """

    def __init__(self, base, device: str, allow_other_base: bool):
        devices.check(device)
        self._base, self._allow_other = base, allow_other_base
        self.device = torch.device(device)
        self._writers = {}

    @classmethod
    def load(
        cls,
        base: Union[str, Path, None],
        adapter: Union[str, Path, AdapterFolder, None] = None,
        *,
        name: str = DEFAULT,
        data: Union[str, Path, None] = None,
        device: str = "cpu",
        allow_other_base: bool = False,
        source_lang: Optional[str] = None,
        target_lang: Optional[str] = None,
    ) -> Generator:
        """Load a base and an adapter, or a checkpoint.

        Args:
            base: a fairseq checkpoint, or a folder of Hugging Face's.
            adapter: an adapter folder; without it, ``base`` is a checkpoint that was trained, whole
                or slim.
            name: what the adapter is called.
            data: for a checkpoint without folder: its data folder, where it has moved.
            device: cpu, cuda, ...
            allow_other_base: take a base that the adapter was not trained on.
            source_lang, target_lang: what is read and written, by a model of several languages
                (what the run kept by default).

        Raises:
            InputError: a file or the device cannot be used, or they do not belong together.
        """
        own = cls(base, device, allow_other_base)
        languages = _languages(source_lang, target_lang)
        if adapter is not None:
            if data is not None:
                raise InputError(
                    f"The data folder {data} would be ignored: the adapter folder has its own "
                    "dictionaries. Leave one of the two out."
                )
            own.add(name, adapter, source_lang, target_lang)
            return own
        if base is None:
            raise InputError("There is neither a base nor an adapter. Give at least one.")
        names.check_free(own._writers, name)
        own._writers[name] = writers.from_checkpoint(base, data, languages)
        own._writers[name].model.to(own.device)
        return own

    @classmethod
    def of(cls, base, folders: Mapping[str, Any], *, data=None, **how) -> Generator:
        """``load`` with all adapters of ``folders``, name -> folder; none is a checkpoint alone."""
        (name, folder), *others = list(folders.items()) or [(DEFAULT, None)]
        own = cls.load(base, folder, name=name, data=data, **how)
        languages = {n: how[n] for n in generation.LANGUAGES if n in how}
        for name, folder in others:
            own.add(name, folder, **languages)
        return own

    @property
    def adapters(self) -> list[str]:
        """The names of the adapters."""
        return list(self._writers)

    @property
    def num_cut(self) -> int:
        """Rows so far that were longer than the model reads."""
        return sum(writer.num_cut for writer in self._writers.values())

    def add(
        self,
        name: str,
        folder: Union[str, Path, AdapterFolder],
        source_lang: Optional[str] = None,
        target_lang: Optional[str] = None,
    ) -> None:
        """Add the adapter in a folder; the base stays as it is. Languages are those of ``load``.

        Raises:
            InputError: the name is taken or no name, or the folder does not fit the base.
        """
        names.check_free(self._writers, name)
        found = folder
        if not isinstance(folder, AdapterFolder):
            found = adapter_folder.read(folder, of_any_task=True)
        languages = _languages(source_lang, target_lang)
        writer = writers.from_folder(found, self._base, self._allow_other, languages)
        writer.model.to(self.device)
        for other in itertools.islice(self._writers.values(), 1):
            writers.share(other.model, writer.model)
        self._writers[name] = writer

    def remove(self, name: str) -> None:
        """Remove an adapter."""
        names.of(self._writers, name)
        del self._writers[name]

    def kept_of(self, adapter: str) -> dict:
        """The flags of generation that an adapter has kept (``--generation``)."""
        return dict(names.of(self._writers, adapter).kept)

    def labels_of(self, adapter: str) -> list[str]:
        """The labels that an adapter chooses from; none where its answers are any text."""
        return list(names.of(self._writers, adapter).labels)

    def search_of(self, adapter: str, given: Mapping[str, Any]) -> dict:
        """The flags of generation that hold for an adapter where these are given.

        Raises:
            InputError: one is unknown, out of its range, or would be ignored.
        """
        writer = names.of(self._writers, adapter)
        generation.check_each(given)
        found = generation.combined(writer.kept, given)
        writer.check(found)
        return found

    def generate(self, texts: Iterable[str], adapter=None, **how) -> list[Written]:
        """The best that is found for each text; as ``stream``, and all at once."""
        return list(self.stream(texts, adapter, **how))

    def stream(self, texts: Iterable[str], adapter=None, **how) -> Iterator[Written]:
        """The best that is found for each text, in order, one after the other; see ``beams``."""
        return (found[0] for found in self.beams(texts, adapter, **how))

    def beams(
        self,
        texts: Iterable[str],
        adapter: Union[str, Iterable[str], None] = None,
        batch_size: int = BATCH_SIZE,
        window: int = WINDOW,
        nbest: Optional[int] = None,
        **search,
    ) -> Iterator[list[Written]]:
        """What is found for each text, the best first: one for each beam. An empty text has an
        empty answer.

        Args:
            texts: rows.
            adapter: name of the adapter, or one a row; None for the only one there is.
            batch_size: rows that go through a model at once, at most.
            window: texts that are read ahead, and sorted by length, at most; fewer at first.
            nbest: so many for each text, no more and no less; where fewer are found, or the text is
                empty, the rest are empty.
            search: fairseq's flags of generation (``text.generation.SEARCH``), such as ``beam=4``;
                where nothing is said, what the run kept (``--generation``), or 5 beams, and 1 where
                words are drawn (``sampling=True``).

        Raises:
            InputError: an adapter is unknown, or a flag is not what it should be.
        """
        names.check_rows(texts, batch_size, window)

        def check(name):
            combined = self.search_of(name, search)
            if nbest is not None:
                generation.check_nbest(nbest, combined)

        generation.check_each(search)
        rows = self._named(texts, adapter, check)
        return self._beams(rows, batch_size, window, nbest, search)

    def _beams(self, rows, batch_size, window, nbest, search):
        def answer(writer, ids):
            flags = writer.search(**generation.combined(writer.kept, search))
            found = [None] * len(ids)
            # Those of a batch may be as long as the longest of them: each is as if it were alone.
            for rows in alike(ids, lambda row: writer.longest_answer(len(row), flags)):
                batch = writer.hypotheses([ids[i] for i in rows], flags)
                for i, hypotheses in zip(rows, batch):
                    found[i] = [written(writer, one) for one in hypotheses]
            return found

        for found in self._answers(rows, batch_size, window, answer, str.strip):
            found = [NOTHING] if found is None else found
            yield found if nbest is None else [*found, *[NOTHING] * nbest][:nbest]

    def predictions(
        self,
        texts: Iterable[str],
        adapter: Union[str, Iterable[str], None] = None,
        batch_size: int = BATCH_SIZE,
        window: int = WINDOW,
    ) -> Iterator[Prediction]:
        """The likeliest label of each text, where a model of Hugging Face's was trained with
        ``--labels``: as in validation. Probabilities are those among the labels.

        Raises:
            InputError: as ``beams``, or an adapter has no labels.
        """

        def answer(writer, ids):
            scores = writer.label_scores(ids)
            return [predict.answer(row, writer.labels, CLASSES) for row in scores]

        def check(name):
            if not self.labels_of(name):
                raise InputError(
                    f"The adapter {name!r} was trained without --labels, so there are none to "
                    "choose from. Use fairseq-peft generate."
                )

        names.check_rows(texts, batch_size, window)
        return self._answers(self._named(texts, adapter, check), batch_size, window, answer)

    def _answers(self, rows, batch_size, window, answer, asks=None):
        """What ``answer`` says to a writer and the token ids of some rows, for each row in order;
        None where ``asks`` says no to its text."""
        for some in windows(rows, min(max(FIRST_WINDOW, batch_size), window), window):
            found, groups = [None] * len(some), {}
            for i, (text, name) in enumerate(some):
                if asks is None or asks(text):
                    groups.setdefault(name, []).append(i)
            for name, group in groups.items():
                writer = self._writers[name]
                ids = [writer.ids(some[i][0]) for i in group]
                for batch in bucket_batches([len(row) for row in ids], batch_size):
                    for i, one in zip(batch, answer(writer, [ids[i] for i in batch])):
                        found[group[i]] = one
            yield from found

    def _named(self, texts, adapter, check) -> Iterator[tuple[str, str]]:
        """(text, name of its adapter), with both checked; adapters by ``check``, too, before the
        first row where it is known who is named, and no others than those."""
        known = names.before_rows(self._writers, adapter)
        for name in known:
            check(name)
        return self._checked(texts, adapter, check, set(known))

    def _checked(self, texts, adapter, check, checked):
        for number, text, name in names.of_rows(self._writers, texts, adapter):
            if not isinstance(text, str):
                raise InputError(
                    f"Row {number} is {repr(text)[:40]}, no text. Give a list of texts."
                )
            if name not in checked:
                check(name)
                checked.add(name)
            yield text, name


def _languages(source, target):
    given = {"source_lang": source, "target_lang": target}
    return {name: value for name, value in given.items() if value is not None}


def alike(rows, key) -> list[list[int]]:
    """The indices of rows that have the same key, together."""
    groups = {}
    for i, row in enumerate(rows):
        groups.setdefault(key(row), []).append(i)
    return list(groups.values())


def written(writer, hypothesis) -> Written:
    tokens = hypothesis["tokens"].tolist()
    return Written(writer.text(tokens), float(hypothesis["score"]), tokens)
