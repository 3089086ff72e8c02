"""Run fairseq-train many times for one start: a process that has imported everything, and forks.

`fairseq-peft worker ADDRESS` serves at a socket of that name, until it is told to end. With a
program, `fairseq-peft worker ADDRESS train DATA ...`, it is `fairseq-train DATA ...` as a child of
that process: the same result bit for bit, without the seconds of imports. Where the worker cannot
take a run, or there is none, the run is a process of its own, and says why. `fairseq-peft sweep`
has one of its own.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys

from fairseq_peft.errors import InputError

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="ADDRESS", help="path of the socket, at most 100 bytes")
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="PROGRAM ARGUMENT",
        help="train, validate, generate, hydra-train or sweep-members, and what follows it",
    )
    parser.add_argument(
        "--parent",
        metavar="PID",
        type=int,
        help="serve until this process ends, which must be the one that started the worker",
    )


def run(args: argparse.Namespace) -> int:
    return send(args.address, args.command) if args.command else serve(args.address, args.parent)


def send(address: str, command: list[str]) -> int:
    """Be ``fairseq-<program>``: its streams, its exit status, its death by a signal."""
    from fairseq_peft.sweeps import worker

    program, *argv = command
    if program not in worker.PLUGIN_PROGRAMS:
        known = ", ".join(worker.PLUGIN_PROGRAMS)
        raise InputError(f"{program} is not a program of the worker. Known are {known}.")
    try:
        status = worker.run(address, program, argv)
    except worker.Declined as reason:
        logger.warning("fairseq-peft worker: %s; this run is a process of its own", reason)
        sys.stderr.flush()
        module = worker.PLUGIN_PROGRAMS[program]
        os.execv(sys.executable, [sys.executable, "-m", module, *argv])
    except worker.Lost as error:
        logger.error("fairseq-peft worker: error: %s", error)
        return 1
    if status >= 0:
        return status
    logger.error("fairseq-peft worker: the run was ended by %s", signal.Signals(-status).name)
    return 128 - status


def serve(address: str, parent: int | None) -> int:
    """Serve until told to end."""
    from fairseq_peft.sweeps import start, worker

    try:
        worker.check_address(address)
    except worker.Declined as reason:
        raise InputError(f"{reason} Or run without one.") from None
    # fairseq sets up its own, as in a process of its own.
    logging.getLogger().handlers.clear()
    logging.getLogger().setLevel(logging.WARNING)
    try:
        worker.serve(address, worker.PLUGIN_PROGRAMS, start.MODULES, parent)
    except worker.Declined as reason:
        raise InputError(f"{reason}. Run without a worker.") from reason
    return 0
