"""Answer over HTTP: many adapters on one base, requests joined into batches.

`fairseq-peft serve --base model.pt --adapter books=DIR --adapter films=DIR2`, then
`curl localhost:8000/predict --json '{"adapter": "books", "texts": ["Un bon livre"]}'`. A row of the
answer is what `fairseq-peft predict --format jsonl` writes of the text. http://localhost:8000/docs
shows all paths, to try them.

It listens to this machine only unless --host says more, and asks nobody for a password. Where too
many texts wait it answers 429 and says when to come back. SIGTERM and Ctrl-C stop it once all that
has been taken is answered. Needs the extra serve: pip install 'fairseq-peft[serve]'.
"""

from __future__ import annotations

import argparse
import importlib
import ipaddress
import logging
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.precision import resolve
from fairseq_peft.serving import flags

logger = logging.getLogger(__name__)

NEEDS = ("fastapi", "fastapi_offline", "uvicorn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = parser.add_argument
    text("--base", type=Path, required=True, help="the checkpoint that the adapters are for")
    text(
        "--adapter",
        action="append",
        required=True,
        metavar="NAME=DIR",
        help="what requests call an adapter, and its folder; once for each",
    )
    text("--host", default="127.0.0.1", help="address to listen at (%(default)s: this machine)")
    text("--port", type=int, default=8000, help="0: any that is free (%(default)s)")
    text("--max-batch", type=int, default=64, help="texts through the model at once (%(default)s)")
    text(
        "--max-wait-ms",
        type=float,
        default=5,
        help="how long a text waits for others to join it (%(default)s)",
    )
    text("--queue", type=int, default=1024, help="texts that may wait (%(default)s)")
    text("--max-texts", type=int, default=512, help="texts of one request (%(default)s)")
    text("--max-bytes", type=int, default=2**20, help="of the body of a request (%(default)s)")
    flags.add_precision_argument(parser)
    text("--threads", type=int, help="CPU threads of the model (as torch takes)")
    text("--device", default="cpu", help="cpu or cuda (%(default)s)")
    text(
        "--allow-other-base",
        action="store_true",
        help="take a base that an adapter was not trained on",
    )


def run(args: argparse.Namespace) -> int:
    folders = flags.named(args.adapter)
    check_installed()
    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads {args.threads}: give 1 or more.")
    logging.getLogger().setLevel(logging.WARNING)  # how a model is built for training
    from fairseq_peft.serving import service

    limits = service.Limits(
        args.max_batch, args.max_wait_ms, args.queue, args.max_texts, args.max_bytes
    )
    limits.check()
    with service.bind(args.host, args.port) as own:  # before the base is read
        classifier = load(args, folders)
        logging.getLogger("fairseq_peft").setLevel(logging.INFO)
        if not is_local(own.getsockname()[0]):
            logger.warning(
                f"warning: everybody who reaches {args.host} can ask this service, without a "
                "password"
            )
        service.serve(service.Service(classifier, limits), own)
    return 0


def check_installed() -> None:
    """Raise InputError where the extra is missing."""
    for name in NEEDS:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InputError(
                f"fairseq-peft serve needs {name}, which is not installed. Install the extra "
                "serve: pip install 'fairseq-peft[serve]'."
            ) from error


def load(args: argparse.Namespace, folders: dict[str, Path]):
    """The classifier with all adapters.

    Raises:
        InputError: one does not fit, or they were trained in different precisions and none is
            given.
    """
    from fairseq_peft.serving import served
    from fairseq_peft.serving.predict import Classifier

    flags.check_device(args.device)
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    opened = {name: served.open_folder(folder) for name, folder in folders.items()}
    for folder in opened.values():
        served.check_shares(folder)
    precision = args.precision and resolve(args.precision)
    trained = {name: served.precision_of(folder) for name, folder in opened.items()}
    if precision is None and len(set(trained.values())) > 1:
        told = ", ".join(f"{name} in {value}" for name, value in trained.items())
        raise InputError(
            f"The adapters were trained in different precisions ({told}). Give one (--precision)."
        )
    (first, folder), *others = opened.items()
    more = {"precision": precision, "device": args.device}
    classifier = Classifier.load(
        args.base, folder, name=first, allow_other_base=args.allow_other_base, **more
    )
    for name, folder in others:
        classifier.add(name, folder)
    return classifier


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
