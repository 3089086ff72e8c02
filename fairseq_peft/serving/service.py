"""The service of ``fairseq-peft serve``: HTTP in front of a ``Classifier`` with many adapters.

    POST /predict   {"adapter": "books", "texts": ["Un bon livre", "Nul"]}
    GET  /adapters  what there is    /health  is it up    /metrics  counters    /docs  this, to try

A row of an answer is what ``fairseq-peft predict --format jsonl`` writes of the text. Whatever
cannot be answered is ``{"error": "one sentence"}``.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import socket
from dataclasses import dataclass
from http import HTTPStatus
from typing import Optional, Union

from fairseq_peft import __version__
from fairseq_peft.errors import InputError
from fairseq_peft.serving.batching import Batcher, Full, Stopping
from fairseq_peft.serving.predict import Classifier

logger = logging.getLogger(__name__)

EXAMPLES = {
    "texts": {"value": {"adapter": "books", "texts": ["Un bon livre", "Nul"]}},
    "pairs": {"value": {"adapter": "entailment", "pairs": [["Il pleut", "Il fait beau"]]}},
}
EXPECTED = 'Expected {"adapter": NAME, "texts": [TEXT, ...]} or "pairs": [[TEXT, TEXT], ...].'
#: Seconds that the body of a request may take to arrive.
BODY_S = 30
#: Seconds that answers may take to go out once all are computed and the service ends.
GOODBYE_S = 10


@dataclass
class Limits:
    """What one request, and all that wait, may hold.

    Attributes:
        max_batch: rows that go through the model at once.
        max_wait_ms: how long a row waits for others to join it.
        queue: rows that may wait, of all requests.
        max_texts: rows of one request.
        max_bytes: of the body of one request.
    """

    max_batch: int = 64
    max_wait_ms: float = 5
    queue: int = 1024
    max_texts: int = 512
    max_bytes: int = 2**20

    def check(self) -> None:
        """Raise InputError where a limit cannot be."""
        for name in ("max_batch", "queue", "max_texts", "max_bytes"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} {getattr(self, name)}: give 1 or more.")
        if not 0 <= self.max_wait_ms <= 60_000:
            raise InputError(f"--max-wait-ms {self.max_wait_ms:g}: give 0 to 60000 milliseconds.")
        if self.max_texts > self.queue:
            raise InputError(
                f"A request of --max-texts {self.max_texts} texts would never fit into --queue "
                f"{self.queue}. Give a longer queue, or fewer texts."
            )


# What goes in and out; FastAPI reads the schema of /docs off these.


@dataclass
class Question:
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


@dataclass
class Health:
    """``ok``, or ``stopping`` with status 503."""

    status: str
    version: str


@dataclass
class Refusal:
    """Why there is no answer."""

    error: str


class Refused(Exception):
    """A request that gets no answer, and why: a sentence."""

    def __init__(self, status: int, text: str, **headers):
        super().__init__(text)
        self.status, self.headers = status, headers


class Service:
    """A classifier, its batches, and what has been counted."""

    def __init__(self, classifier: Classifier, limits: Limits):
        self.classifier, self.limits = classifier, limits
        self.batcher = Batcher(
            self._predict, limits.max_batch, limits.max_wait_ms / 1000, limits.queue
        )
        self.num_requests = collections.Counter()  # by status

    def _predict(self, rows, names):
        return self.classifier.predict(rows, names, batch_size=self.limits.max_batch)

    async def answer(self, question: Question) -> dict:
        """What ``POST /predict`` answers.

        Raises:
            Refused: it cannot.
        """
        name, rows = self.rows_of(question)
        try:
            found = await self.batcher.answer(name, rows)
        except Full as error:
            wait = {"Retry-After": str(error.seconds)}
            waiting = self.batcher.num_waiting
            raise Refused(
                429,
                f"{waiting} texts wait already, and with these {len(rows)} there would be more "
                f"than {self.limits.queue}. Ask again in {error.seconds} s.",
                **wait,
            ) from None
        except Stopping:
            raise Refused(503, "The service is stopping. Ask another one.") from None
        return {"adapter": name, "predictions": [row.as_dict() for row in found]}

    def rows_of(self, question: Question) -> tuple[str, list]:
        """The adapter of a question, and its rows, checked."""
        name, names = question.adapter, self.classifier.adapters
        if name is None and len(names) == 1:
            (name,) = names
        if name is None:
            raise Refused(422, f'Name the "adapter". Loaded: {", ".join(names)}.')
        if name not in names:
            raise Refused(404, f"There is no adapter {name!r}. Loaded: {', '.join(names)}.")
        given, other = "texts", question.pairs
        rows = question.texts
        if self.classifier.num_texts_of(name) == 2:
            given, rows, other = "pairs", question.pairs, question.texts
        if rows is None or other is not None:
            reads = "one text" if given == "texts" else "a pair of texts"
            raise Refused(422, f'The adapter {name} reads {reads} a row: give "{given}" alone.')
        if len(rows) > self.limits.max_texts:
            raise Refused(
                413,
                f"{len(rows)} rows in one request are more than {self.limits.max_texts}. Give them "
                "in several.",
            )
        try:
            self.classifier.check(rows, name)
            _check_characters(rows)
        except InputError as error:
            raise Refused(422, str(error)) from None
        return name, rows

    def metrics(self) -> str:
        """Counters, as Prometheus reads them."""
        batcher = self.batcher
        told = [
            ("requests_total", "counter", {f'{{status="{k}"}}': n for k, n in self._by_status()}),
            ("rows_total", "counter", {f'{{adapter="{k}"}}': n for k, n in self._by_adapter()}),
            ("batches_total", "counter", {"": batcher.num_batches}),
            ("busy_seconds_total", "counter", {"": f"{batcher.busy_s:.6f}"}),
            ("requests_open", "gauge", {"": batcher.num_open}),
            ("rows_waiting", "gauge", {"": batcher.num_waiting}),
        ]
        lines = []
        for name, kind, values in told:
            lines.append(f"# TYPE fairseq_peft_{name} {kind}")
            lines += [f"fairseq_peft_{name}{labels} {value}" for labels, value in values.items()]
        return "\n".join(lines) + "\n"

    def _by_status(self):
        return sorted(self.num_requests.items())

    def _by_adapter(self):
        return [(name, self.batcher.num_rows[name]) for name in self.classifier.adapters]


def _check_characters(rows) -> None:
    """Raise InputError at half a character, which JSON can escape, and an answer cannot repeat."""
    for number, row in enumerate(rows, start=1):
        for text in (row,) if isinstance(row, str) else row:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"Row {number} has half a character at {error.start}: {text[error.start]!r} "
                    "is no text without its other half. Take it out."
                ) from None


class Gate:
    """Before anything reads a request: its body is as small as it must be, and arrives in time.
    Counts the answers by their status."""

    def __init__(self, app, service: Service):
        self.app, self.service = app, service

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def counted(message):
            if message["type"] == "http.response.start":
                self.service.num_requests[message["status"]] += 1
            await send(message)

        try:
            body = await asyncio.wait_for(self._body(scope, receive), BODY_S)
        except Refused as error:
            return await refuse(error)(scope, receive, counted)
        except asyncio.TimeoutError:
            error = Refused(408, f"The body of the request took longer than {BODY_S} s.")
            return await refuse(error)(scope, receive, counted)
        if body is None:  # whoever asked has gone
            return None
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def read():
            return next(messages, None) or await receive()

        return await self.app(scope, read, counted)

    async def _body(self, scope, receive):
        most = self.service.limits.max_bytes
        told = dict(scope["headers"]).get(b"content-length", b"")
        too_large = Refused(
            413, f"The body of the request has more than {most:,} bytes. Ask in several requests.",
            connection="close",
        )  # fmt: skip
        if told.isdigit() and int(told) > most:
            raise too_large
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > most:
                raise too_large
            if not message.get("more_body"):
                return bytes(body)


def refuse(error: Refused):
    """The response of a refusal."""
    from fastapi.responses import JSONResponse

    return JSONResponse({"error": str(error)}, error.status, error.headers)


def create_app(service: Service):
    """The ASGI application of ``service``."""
    from fastapi import Body
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, PlainTextResponse
    from fastapi_offline import FastAPIOffline
    from starlette.exceptions import HTTPException

    @contextlib.asynccontextmanager
    async def lifespan(app):
        await service.batcher.start()
        yield
        await service.batcher.close()

    app = FastAPIOffline(  # its /docs asks no other server for anything
        redoc_url=None,
        title="fairseq-peft serve",
        version=__version__,
        description="Many adapters on one base: texts in, classes and probabilities out.",
        lifespan=lifespan,
    )
    app.add_middleware(Gate, service=service)
    refusals = {
        status: {"model": Refusal, "description": HTTPStatus(status).phrase}
        for status in (400, 404, 408, 413, 415, 422, 429, 503)
    }

    @app.post("/predict", response_model=Answer, responses=refusals)
    async def predict(question: Question = Body(openapi_examples=EXAMPLES)):  # noqa: B008
        """The class of each text, or pair of texts, by one adapter."""
        return JSONResponse(await service.answer(question))

    @app.get("/adapters", response_model=Adapters)
    async def adapters():
        """The adapters, and how much one may ask for."""
        own = service.classifier
        found = [
            Adapter(name, own.kind_of(name), own.labels_of(name), own.num_texts_of(name))
            for name in own.adapters
        ]
        return Adapters(found, service.limits)

    @app.get("/health", response_model=Health, responses={503: {"model": Health}})
    async def health():
        """Whether questions are taken."""
        stopping = service.batcher.stopping
        told = {"status": "stopping" if stopping else "ok", "version": __version__}
        return JSONResponse(told, 503 if stopping else 200)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics():
        """Counters, as Prometheus reads them."""
        return PlainTextResponse(service.metrics(), media_type="text/plain; version=0.0.4")

    @app.exception_handler(Refused)
    async def refused(request, error):
        return refuse(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request, error):
        return refuse(_refusal(error.errors()[0], request.headers.get("content-type")))

    @app.exception_handler(HTTPException)
    async def http_error(request, error):
        paths = "POST /predict, GET /adapters, /health, /metrics and /docs"
        texts = {
            400: f"The body is no JSON. {EXPECTED}",
            404: f"There is nothing at {request.url.path}. There are {paths}.",
            405: f"{request.method} is not for {request.url.path}. There are {paths}.",
        }
        text = texts.get(error.status_code, str(error.detail))
        return refuse(Refused(error.status_code, text, **(error.headers or {})))

    @app.exception_handler(Exception)
    async def failed(request, error):  # the server logs the traceback
        service.num_requests[500] += 1
        return refuse(Refused(500, "This request failed. The log of the service says why."))

    return app


def _refusal(error: dict, content_type: Optional[str]) -> Refused:
    """What the first error of FastAPI's validation says."""
    if error["type"] == "json_invalid":
        return Refused(400, f"The body is no JSON ({error['ctx']['error']}). {EXPECTED}")
    if "json" not in (content_type or ""):
        return Refused(
            415, f"The Content-Type is {content_type}. Give application/json. {EXPECTED}"
        )
    place = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in error["loc"][1:])
    told = error["msg"][:1].lower() + error["msg"][1:]
    return Refused(422, f"{place.lstrip('.') or 'The body'}: {told}. {EXPECTED}")


# The server


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address; 0 is any port that is free.

    Raises:
        InputError: there is no such address here, or it is taken.
    """
    if not 0 <= port < 2**16:
        raise InputError(
            f"--port {port}: give one from 1 to {2**16 - 1}; 0 takes one that is free."
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no name of a host"
        raise InputError(
            f"--host {host} is no address here ({reason}). Give 127.0.0.1 for this machine alone, "
            "0.0.0.0 for all."
        ) from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise InputError(
            f"--host {host} --port {port} cannot be used ({error.strerror}). Give another port; "
            "0 takes one that is free."
        ) from error
    return found


def serve(service: Service, own: socket.socket) -> None:
    """Answer at a bound socket until SIGTERM or Ctrl-C: then what has been taken is answered, new
    questions get 503, and this returns. A second signal does not wait."""
    import uvicorn

    app = create_app(service)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=GOODBYE_S
    )
    server = uvicorn.Server(config)
    tasks = []

    async def stop():
        await service.batcher.stop()
        server.should_exit = True

    def on_signal(number, frame):
        if service.batcher.stopping or not server.started:
            server.should_exit = server.force_exit = True
            return
        logger.info("stopping: what has been taken is answered")
        loop.call_soon_threadsafe(lambda: tasks.append(loop.create_task(stop())))

    async def run():
        nonlocal loop
        loop = asyncio.get_running_loop()
        await server.serve([own])

    loop = None
    server.handle_exit = on_signal
    own.listen(config.backlog)
    host, port = own.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    names = ", ".join(service.classifier.adapters)
    logger.info(
        f"serving {names} at http://{host}:{port}; to try it: /docs, to end it: Ctrl-C or kill "
        f"{os.getpid()}"
    )
    asyncio.run(run())
