"""A service at an address: its socket, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import socket

from fairseq_peft.errors import InputError
from fairseq_peft.serving.service.app import create_app
from fairseq_peft.serving.service.base import Service

logger = logging.getLogger(__name__)

#: Seconds that answers may take to go out once all are computed and the service ends.
GOODBYE_S = 10
#: Connections that may wait to be taken.
BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; 0 is any port that is free.

    Who connects before there is a service waits for it.

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
        # Two sockets may be bound to one address; the second that listens there fails.
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        raise InputError(
            f"--host {host} --port {port} cannot be used ({error.strerror}). Give another port; "
            "0 takes one that is free."
        ) from error
    return found


def serve(service: Service, own: socket.socket) -> None:
    """Answer at a socket of ``bind`` until SIGTERM or Ctrl-C: then what has been taken is answered,
    new questions get 503, and this returns. A second signal does not wait."""
    import uvicorn

    app = create_app(service)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GOODBYE_S,
        backlog=BACKLOG,
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
    host, port = own.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    names = ", ".join(service.model.adapters)
    logger.info(
        f"serving {names} at http://{host}:{port}; to try it: /docs, to end it: Ctrl-C or kill "
        f"{os.getpid()}"
    )
    asyncio.run(run())
