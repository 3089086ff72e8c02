"""Answer over HTTP: many adapters on one base, requests joined into batches.

`fairseq-peft serve --base model.pt --adapter books=DIR --adapter films=DIR2`, then
`curl localhost:8000/predict -H 'Content-Type: application/json' -d '{"texts": ["Nul"], "adapter":
"books"}'`. A row of the answer is what `fairseq-peft predict --format jsonl` writes of the text.
http://localhost:8000/docs shows all paths, to try them.

Adapters that write text (what `fairseq-peft generate` takes) are asked at /generate:
`-d '{"adapter": "legal", "texts": ["One word."], "beam": 4}'`. A row of the answer is what
`fairseq-peft generate --format jsonl` writes, whatever batch the text is in. Without --adapter the
base itself writes: a checkpoint that was trained, or a folder of Hugging Face's. Adapters that were
trained with labels choose one at /predict, too.

It listens to this machine only unless --host says more, and asks nobody for a password. Where too
many texts wait it answers 429 and says when to come back. SIGTERM and Ctrl-C stop it once all that
has been taken is answered. Needs the extra serve: pip install 'fairseq-peft[serve]'.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import ipaddress
import logging
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.precision import resolve
from fairseq_peft.serving import flags
from fairseq_peft.text import generation

logger = logging.getLogger(__name__)

NEEDS = ("fastapi", "fastapi_offline", "uvicorn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = parser.add_argument
    text(
        "--base",
        type=Path,
        required=True,
        help="the checkpoint, or the folder of Hugging Face's, that the adapters are for",
    )
    text(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="what requests call an adapter, and its folder; once for each",
    )
    text("--host", default="127.0.0.1", help="address to listen at (%(default)s: this machine)")
    text("--port", type=int, default=8000, help="0: any that is free (%(default)s)")
    text("--max-batch", type=int, help="texts through the model at once (64; 16 to write text)")
    text(
        "--max-wait-ms",
        type=float,
        default=5,
        help="how long a text waits for others to join it (%(default)s)",
    )
    text("--queue", type=int, default=1024, help="texts that may wait (%(default)s)")
    text("--max-texts", type=int, default=512, help="texts of one request (%(default)s)")
    text("--max-bytes", type=int, default=2**20, help="of the body of a request (%(default)s)")
    text("--max-beam", type=int, help="beams that a request may ask for, to write text (16)")
    text("--max-answer", type=int, help="max_len_b that a request may ask for (1024)")
    for name in generation.LANGUAGES:
        how = "of models that write and know several (what training has kept)"
        text(f"--{name.replace('_', '-')}", metavar="LANG", help=how)
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
    from fairseq_peft.serving.service import server

    opened = read(folders)
    writes = not opened or any(folder.is_text for folder in opened.values())
    limits = limits_of(args, writes)
    with server.bind(args.host, args.port) as own:  # before the base is read
        if args.threads:
            import torch

            torch.set_num_threads(args.threads)
        service = writer(args, opened, limits) if writes else classifier(args, opened, limits)
        logging.getLogger("fairseq_peft").setLevel(logging.INFO)
        if not is_local(own.getsockname()[0]):
            logger.warning(
                f"warning: everybody who reaches {args.host} can ask this service, without a "
                "password"
            )
        server.serve(service, own)
    return 0


def read(folders: dict[str, Path]) -> dict:
    """Name -> adapter folder.

    Raises:
        InputError: one is damaged, or some write text and others do not.
    """
    from fairseq_peft.adapters import folder

    found = {name: folder.read(path, of_any_task=True) for name, path in folders.items()}
    kinds = {one.is_text: name for name, one in found.items()}
    if len(kinds) > 1:
        raise InputError(
            f"The adapter {kinds[True]} writes text and {kinds[False]} classifies: a service does "
            "one of the two. Start one for each."
        )
    return found


def limits_of(args: argparse.Namespace, writes: bool):
    """The limits of the flags.

    Raises:
        InputError: one cannot be, or means nothing to a classifier.
    """
    from fairseq_peft.serving.service import base, generate

    own = generate.Limits if writes else base.Limits
    known = {field.name for field in dataclasses.fields(own)}
    given = {name: getattr(args, name) for name in vars(generate.Limits())}
    given = {name: value for name, value in given.items() if value is not None}
    for name in sorted(given.keys() - known):
        ignored(name, given[name], "adapters that classify")
    limits = own(**given)
    limits.check()
    return limits


def ignored(name: str, value, of: str) -> None:
    """Raise InputError for a flag that means nothing here."""
    flag = f"--{name.replace('_', '-')} {value}"
    raise InputError(f"{flag} would be ignored: it is not for {of}. Leave it out.")


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


def classifier(args: argparse.Namespace, folders: dict, limits):
    """The service of a classifier with all adapters.

    Raises:
        InputError: one does not fit, or they were trained in different precisions and none is
            given.
    """
    from fairseq_peft.serving import served
    from fairseq_peft.serving.predict import Classifier
    from fairseq_peft.serving.service.predict import PredictService

    for name in generation.LANGUAGES:
        if getattr(args, name) is not None:
            ignored(name, getattr(args, name), "adapters that classify")
    for folder in folders.values():
        served.check_shares(served.open_folder(folder))
    precision = args.precision and resolve(args.precision)
    if precision is None:  # before the base is read
        served.check_precisions({n: served.precision_of(one) for n, one in folders.items()})
    (first, folder), *others = folders.items()
    more = {"precision": precision, "device": args.device}
    found = Classifier.load(
        args.base, folder, name=first, allow_other_base=args.allow_other_base, **more
    )
    for name, folder in others:
        found.add(name, folder)
    return PredictService(found, limits)


def writer(args: argparse.Namespace, folders: dict, limits):
    """The service of a generator with all adapters.

    Raises:
        InputError: one does not fit.
    """
    from fairseq_peft.serving.generate import Generator
    from fairseq_peft.serving.service.generate import GenerateService

    if args.precision is not None:
        ignored("precision", args.precision, "models that write text, whose weights are fp32")
    found = Generator.of(
        args.base,
        folders,
        device=args.device,
        allow_other_base=args.allow_other_base,
        source_lang=args.source_lang,
        target_lang=args.target_lang,
    )
    return GenerateService(found, limits)


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
