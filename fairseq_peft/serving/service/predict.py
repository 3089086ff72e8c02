"""``POST /predict``: classes of texts, by a ``Classifier``.

A row of an answer is what ``fairseq-peft predict --format jsonl`` writes of the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Union

from fairseq_peft.errors import InputError
from fairseq_peft.serving.service.base import Asked, Limits, Refused, Service

EXAMPLES = {
    "texts": {"value": {"adapter": "books", "texts": ["Un bon livre", "Nul"]}},
    "pairs": {"value": {"adapter": "entailment", "pairs": [["Il pleut", "Il fait beau"]]}},
}

# What goes in and out; FastAPI reads the schema of /docs off these.


@dataclass
class Question(Asked):
    """Rows to classify: texts, or pairs of texts for an adapter that was trained on pairs.

    ``adapter`` may be left out where there is only one.
    """

    __pydantic_config__ = {"extra": "forbid"}

    adapter: Optional[str] = None
    texts: Optional[list[str]] = None
    pairs: Optional[list[tuple[str, str]]] = None


@dataclass
class Class:
    """The most probable class; of an adapter of any number of labels, those that are more probable
    than not, with ``|`` between them, and the probability of just these."""

    label: str
    probability: float
    probabilities: dict[str, float]


@dataclass
class Number:
    """The number, of an adapter that predicts one."""

    value: float


@dataclass
class Answer:
    """A prediction a row, in the order of the rows."""

    adapter: str
    predictions: list[Union[Class, Number]]


@dataclass
class Adapter:
    """What an adapter predicts: ``classes``, ``labels`` or ``number``, of one text or two."""

    name: str
    kind: str
    labels: list[str]
    num_texts: int


@dataclass
class Adapters:
    """The adapters, and how much one may ask for."""

    adapters: list[Adapter]
    limits: Limits


class PredictService(Service):
    """In front of a ``Classifier``: rows of all adapters share a batch."""

    path = "/predict"
    about = "Many adapters on one base: texts in, classes and probabilities out."
    Inventory = Adapters
    expected = 'Expected {"adapter": NAME, "texts": [TEXT, ...]} or "pairs": [[TEXT, TEXT], ...].'

    def compute(self, rows, adapters, lane):
        return self.model.predict(rows, adapters, batch_size=self.limits.max_batch)

    async def answer(self, question: Question) -> dict:
        """What a question is answered.

        Raises:
            Refused: it cannot be.
        """
        name, rows = self.rows_of(question)
        found = await self.answers(name, rows)
        return {"adapter": name, "predictions": [row.as_dict() for row in found]}

    def rows_of(self, question: Question) -> tuple[str, list]:
        """The adapter of a question, and its rows, checked."""
        name = self.name_of(question.adapter)
        given, rows, other = "texts", question.texts, question.pairs
        if self.model.num_texts_of(name) == 2:
            given, rows, other = "pairs", question.pairs, question.texts
        if rows is None or other is not None:
            reads = "one text" if given == "texts" else "a pair of texts"
            raise Refused(422, f'The adapter {name} reads {reads} a row: give "{given}" alone.')
        self.check_rows(rows)
        try:
            self.model.check(rows, name)
        except InputError as error:
            raise Refused(422, str(error)) from None
        return name, rows

    def inventory(self):
        own = self.model
        found = [
            Adapter(name, own.kind_of(name), own.labels_of(name), own.num_texts_of(name))
            for name in own.adapters
        ]
        return Adapters(found, self.limits)

    def add_paths(self, app, refusals):
        from fastapi import Body
        from fastapi.responses import JSONResponse

        @app.post(self.path, response_model=Answer, responses=refusals)
        async def predict(question: Question = Body(openapi_examples=EXAMPLES)):  # noqa: B008
            """The class of each text, or pair of texts, by one adapter."""
            return JSONResponse(await self.answer(question))
