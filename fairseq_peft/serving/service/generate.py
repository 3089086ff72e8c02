"""``POST /generate``: texts for texts, by a ``Generator``.

A row of an answer is what ``fairseq-peft generate --format jsonl`` writes of the text. Of an
adapter that was trained with labels, ``POST /predict`` tells the likeliest, as ``fairseq-peft
predict`` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from typing import Any, Optional

from fairseq_peft.errors import InputError
from fairseq_peft.serving.generate import BATCH_SIZE
from fairseq_peft.serving.service import base
from fairseq_peft.serving.service.base import Asked, Refused, Service
from fairseq_peft.serving.service.predict import Class
from fairseq_peft.text import generation

EXAMPLES = {
    "as kept": {"value": {"adapter": "legal", "texts": ["The court is in session."]}},
    "beams": {"value": {"adapter": "legal", "texts": ["One word."], "beam": 4, "lenpen": 0.6}},
}


@dataclass
class Limits(base.Limits):
    """As for classes; rows of a batch are fewer, for each is as many as it has beams.

    Attributes:
        max_beam: beams that a request may ask for.
        max_answer: tokens of an answer that it may ask for by max_len_b; by max_len_a it may ask
            for twice those of the text.
    """

    max_batch: int = BATCH_SIZE
    max_beam: int = 16
    max_answer: int = 1024


# What goes in and out; FastAPI reads the schema of /docs off these.

Question = make_dataclass(
    "Question",
    [
        ("texts", list[str]),
        ("adapter", Optional[str], None),
        *(
            (
                name,
                Optional[kind],
                field(default=None, metadata={"description": text, "strict": True}),
            )
            for name, (kind, text) in generation.SEARCH.items()
        ),
    ],
    bases=(Asked,),
    namespace={
        "__doc__": "Texts to answer, and how answers are searched, where it is not as the adapter "
        "has kept it. ``adapter`` may be left out where there is only one.",
        "__pydantic_config__": {"extra": "forbid"},
        "__module__": __name__,
    },
)


@dataclass
class Choice(Asked):
    """Texts whose likeliest label is asked for. ``adapter`` may be left out where there is only
    one."""

    __pydantic_config__ = {"extra": "forbid"}

    texts: list[str]
    adapter: Optional[str] = None


@dataclass
class Chosen:
    """The likeliest label of each row, in the order of the rows; probabilities are those among the
    labels."""

    adapter: str
    predictions: list[Class]


@dataclass
class Text:
    """What is written for a row, and its log likelihood in nats, by the number of tokens to the
    power of lenpen."""

    text: str
    score: float


@dataclass
class Answer:
    """The best that was found for each row, in the order of the rows."""

    adapter: str
    answers: list[Text]


@dataclass
class Adapter:
    """An adapter, the flags of generation that it has kept, and its labels, if it has some."""

    name: str
    generation: dict[str, Any]
    labels: list[str]


@dataclass
class Adapters:
    """The adapters, and how much one may ask for."""

    adapters: list[Adapter]
    limits: Limits


class GenerateService(Service):
    """In front of a ``Generator``: rows of one adapter that are searched alike share a batch."""

    path = "/generate"
    about = "Many adapters on one base: texts in, texts out."
    Inventory = Adapters
    expected = (
        'Expected {"adapter": NAME, "texts": [TEXT, ...]}, and flags of generation such as '
        '"beam": 4.'
    )

    @property
    def paths(self):
        labels = any(self.model.labels_of(name) for name in self.model.adapters)
        return [self.path, "/predict"] if labels else [self.path]

    def compute(self, rows, adapters, lane):
        adapter, search = lane
        most = self.limits.max_batch
        if search is None:  # a label is asked for
            return list(self.model.predictions(rows, adapter, batch_size=most))
        return self.model.generate(rows, adapter, batch_size=most, **dict(search))

    async def answer(self, question: Question) -> dict:
        """What a question is answered.

        Raises:
            Refused: it cannot be.
        """
        name = self.name_of(question.adapter)
        self.check_rows(question.texts)
        lane = name, tuple(sorted(self.search_of(name, question).items()))
        found = await self.answers(name, question.texts, lane)
        return {"adapter": name, "answers": [row.as_dict() for row in found]}

    async def choose(self, question: Choice) -> dict:
        """As ``answer``: labels."""
        name = self.name_of(question.adapter)
        if not self.model.labels_of(name):
            raise Refused(422, f"The adapter {name} has no labels to choose from: ask {self.path}.")
        self.check_rows(question.texts)
        found = await self.answers(name, question.texts, (name, None))
        return {"adapter": name, "predictions": [row.as_dict() for row in found]}

    def search_of(self, name: str, question: Question) -> Mapping[str, Any]:
        """All flags that the texts of a question are answered by."""
        given = {flag: getattr(question, flag) for flag in generation.SEARCH}
        given = {flag: value for flag, value in given.items() if value is not None}
        for flag, most in (
            ("beam", self.limits.max_beam),
            ("max_len_b", self.limits.max_answer),
            ("max_len_a", 2),
        ):
            if given.get(flag, 0) > most:
                raise Refused(422, f"{flag} {given[flag]}: this service takes {most} at most.")
        try:
            return self.model.search_of(name, given)
        except InputError as error:
            raise Refused(422, str(error)) from None

    def inventory(self):
        own = self.model
        found = [Adapter(name, own.kept_of(name), own.labels_of(name)) for name in own.adapters]
        return Adapters(found, self.limits)

    def add_paths(self, app, refusals):
        from fastapi import Body
        from fastapi.responses import JSONResponse

        @app.post(self.path, response_model=Answer, responses=refusals)
        async def generate(question: Question = Body(openapi_examples=EXAMPLES)):  # noqa: B008
            """What is written for each text, by one adapter."""
            return JSONResponse(await self.answer(question))

        if "/predict" in self.paths:

            @app.post("/predict", response_model=Chosen, responses=refusals)
            async def predict(question: Choice):
                """The likeliest label of each text, by one adapter that has labels."""
                return JSONResponse(await self.choose(question))
