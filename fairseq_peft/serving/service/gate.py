"""Before anything reads a request: its body is small enough, and arrives in time."""

from __future__ import annotations

import asyncio

from fairseq_peft.serving.service.base import Refused, Service

#: Seconds that the body of a request may take to arrive.
BODY_S = 30


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
