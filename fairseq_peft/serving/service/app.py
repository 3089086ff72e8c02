"""The ASGI application of a service: its paths, and what is said where they cannot answer."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from http import HTTPStatus

from fairseq_peft import __version__
from fairseq_peft.files import json_of
from fairseq_peft.serving.service.base import Refusal, Refused, Service
from fairseq_peft.serving.service.gate import Gate, refuse

#: What JSON calls a value that is no object.
NAMES = {
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


@dataclass
class Health:
    """``ok``, or ``stopping`` with status 503."""

    status: str
    version: str


def create_app(service: Service):
    """The ASGI application of ``service``."""
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, PlainTextResponse
    from fastapi.routing import APIRoute
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
        description=service.about,
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # it would answer without a sentence
    app.router.route_class = _reading(service.expected)
    app.add_middleware(Gate, service=service)
    refusals = {
        status: {"model": Refusal, "description": HTTPStatus(status).phrase}
        for status in (400, 404, 408, 413, 415, 422, 429, 503)
    }

    service.add_paths(app, refusals)

    @app.get("/adapters", response_model=service.Inventory)
    async def adapters():
        """The adapters, and how much one may ask for."""
        return service.inventory()

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

    for route in app.routes:  # a closed row of /docs says it, not the function's name
        if isinstance(route, APIRoute):
            route.summary = route.description.rstrip(".")

    @app.exception_handler(Refused)
    async def refused(request, error):
        return refuse(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request, error):
        return refuse(_refusal(error.errors()[0], service.expected))

    @app.exception_handler(HTTPException)
    async def http_error(request, error):
        paths = f"POST {' and '.join(service.paths)}, GET /adapters, /health, /metrics and /docs"
        texts = {
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


def _reading(expected: str) -> type:
    """The class of paths whose requests have a JSON object as their body, or are refused."""
    from fastapi import Request
    from fastapi.routing import APIRoute

    class Read(Request):
        """A request whose body has been read, as ``value``."""

        value: dict

        async def json(self):
            return self.value

    class Route(APIRoute):
        def get_route_handler(self):
            handle = super().get_route_handler()
            if self.body_field is None:
                return handle

            async def read(request):
                found = Read(request.scope, request.receive)
                given = request.headers.get("content-type")
                found.value = _object(await found.body(), given, expected)
                return await handle(found)

            return read

    return Route


def _object(body: bytes, content_type: str | None, expected: str) -> dict:
    """The JSON object in a body.

    Raises:
        Refused: there is none, one with a key twice, or it is not said to be one.
    """
    if not body.strip():
        raise Refused(400, f"The body is empty, so no JSON. {expected}")
    kind = (content_type or "none").partition(";")[0].strip().lower()
    if not re.fullmatch(r"application/(.+\+)?json", kind):
        raise Refused(415, f"The Content-Type is {content_type}. Give application/json. {expected}")
    try:
        found = json_of(body, each_key_once=True)
    except ValueError as error:
        reason = str(error).partition(";")[0]  # behind it, what a program may do
        raise Refused(400, f"The body is no JSON that can be read ({reason}). {expected}") from None
    if not isinstance(found, dict):
        raise Refused(422, f"The body is no JSON object but {NAMES[type(found)]}. {expected}")
    return found


def _refusal(error: dict, expected: str) -> Refused:
    """What the first error of FastAPI's validation says."""
    place = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in error["loc"][1:])
    told = error["msg"][:1].lower() + error["msg"][1:]
    return Refused(422, f"{place.lstrip('.') or 'The body'}: {told}. {expected}")
