"""The ASGI application of a service: its paths, and what is said where they cannot answer."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from http import HTTPStatus

from fairseq_peft import __version__
from fairseq_peft.serving.service.base import Refusal, Refused, Service
from fairseq_peft.serving.service.gate import Gate, refuse


@dataclass
class Health:
    """``ok``, or ``stopping`` with status 503."""

    status: str
    version: str


def create_app(service: Service):
    """The ASGI application of ``service``."""
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
        description=service.about,
        lifespan=lifespan,
    )
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

    @app.exception_handler(Refused)
    async def refused(request, error):
        return refuse(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request, error):
        given = request.headers.get("content-type")
        return refuse(_refusal(error.errors()[0], given, service.expected))

    @app.exception_handler(HTTPException)
    async def http_error(request, error):
        paths = f"POST {' and '.join(service.paths)}, GET /adapters, /health, /metrics and /docs"
        texts = {
            400: f"The body is no JSON. {service.expected}",
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


def _refusal(error: dict, content_type: str | None, expected: str) -> Refused:
    """What the first error of FastAPI's validation says."""
    if error["type"] == "json_invalid":
        return Refused(400, f"The body is no JSON ({error['ctx']['error']}). {expected}")
    if "json" not in (content_type or ""):
        return Refused(
            415, f"The Content-Type is {content_type}. Give application/json. {expected}"
        )
    place = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in error["loc"][1:])
    told = error["msg"][:1].lower() + error["msg"][1:]
    return Refused(422, f"{place.lstrip('.') or 'The body'}: {told}. {expected}")
