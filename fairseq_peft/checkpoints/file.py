"""Opening a file of fairseq's: weights and plain values, never code, unless somebody says so."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from fairseq_peft.errors import InputError, unwritten
from fairseq_peft.files import is_utf8, whole

logger = logging.getLogger(__name__)

#: What torch's safe loader lets through beside tensors and plain values: older checkpoints hold
#: their flags in a Namespace.
ALLOWED = [argparse.Namespace]

#: The entry of a checkpoint that leaves what is its base's out of ``model`` (``slim.py``).
SLIM = "base"

#: How a file begins that Git puts where Git LFS was not installed.
LFS = b"version https://git-lfs"

#: Whether ``torch.load`` is the safe loader where nobody says which (torch 2.6 and later).
SAFE_BY_DEFAULT = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6)


def allow() -> None:
    """Let torch's safe loader take ``ALLOWED``: in this process, so fairseq's own reading, too."""
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals(ALLOWED)


allow()


def read(path: str, trust: bool = False) -> dict:
    """A fairseq checkpoint, as it lies on the disk, through torch's safe loader.

    Args:
        trust: whether a file that the safe loader refuses is opened all the same
            (``--trust-checkpoint``), which runs whatever code it holds.

    Raises:
        InputError: it is cut short, no checkpoint, or would need to run code.
    """
    state = load(path, trust)
    model = state.get("model") if isinstance(state, dict) else None
    if not isinstance(model, dict) or not all(isinstance(v, torch.Tensor) for v in model.values()):
        raise InputError(f"{path} has no weights under 'model': it is no fairseq checkpoint.")
    if not ("optimizer_history" in state and "extra_state" in state or "best_loss" in state):
        raise InputError(
            f"{path} has weights but not the entries 'optimizer_history' and 'extra_state', "
            "without which fairseq does not load it. Give the file that fairseq-train wrote or "
            "that was published for fairseq."
        )
    return state


def told(state: dict, group: str = "model") -> dict:
    """The flags of a group, such as ``task``, that the checkpoint ``state`` itself names.

    Newer checkpoints have them by groups (``cfg``), older ones all in one (``args``).
    """
    cfg = state.get("cfg")
    own = cfg.get(group) if isinstance(cfg, dict) else None
    for given in (own, state.get("args")):
        if isinstance(given, (argparse.Namespace, dict)):
            return fields(given)
    return {}


def fields(config) -> dict:
    """Name -> value of a namespace, of what stands for one (``namespace``), or of a dictionary."""
    if isinstance(config, dict) and not is_namespace(config):
        return config
    return getattr(config, "__dict__", {})


def is_namespace(config) -> bool:
    """Whether it is a namespace, or what stands for one."""
    stands_for_one = type(config) is OrderedDict and bool(vars(config))
    return stands_for_one or isinstance(config, argparse.Namespace)


def namespace(flags: Mapping) -> OrderedDict:
    """What fairseq takes for the ``argparse.Namespace`` of older checkpoints: flags as attributes.

    Since torch 2.6 ``torch.load`` refuses a file with a namespace unless somebody allows the class,
    as this plugin does and stock fairseq does not. It takes a dictionary, and its attributes.
    """
    found = OrderedDict()
    vars(found).update(flags)
    return found


def load(path: str, trust: bool = False):
    """What is in a ``.pt`` file, through torch's safe loader; arguments and errors as ``read``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = _load(path, trust)
    except (PermissionError, IsADirectoryError, FileNotFoundError) as error:
        raise InputError(
            f"{path} cannot be opened ({error.strerror}). Give a file that is there and that you "
            "may read."
        ) from error
    except pickle.UnpicklingError as error:
        _check_pointer(path)
        # torch's text goes on to recommend the unsafe loader; only what it met is of use here.
        met = re.search(
            r"(Unsupported|Trying to load) .*?(?= was not an allowed|$)", str(error), re.M
        )
        raise InputError(
            f"{path} holds more than tensors and plain values, or is no checkpoint; it is not "
            f"opened, because that could run code ({met[0].rstrip('.') if met else 'unknown'}). "
            "Give a checkpoint of fairseq-train. If you trust its author with your machine, "
            "fairseq-peft export-checkpoint FILE --out NEW --trust-checkpoint makes a plain one."
        ) from error
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        _check_pointer(path)
        lines = str(error).strip().splitlines() or [""]
        raise InputError(
            f"{path} cannot be read as a checkpoint: it is cut short, damaged or no checkpoint "
            f"({type(error).__name__}: {lines[0][:200]}). Copy or make it again, or give another "
            "one."
        ) from error
    return state


def _check_pointer(path):
    """Raise InputError where the file only names the one that was meant."""
    with open(path, "rb") as file:
        if file.read(len(LFS)) == LFS:
            raise InputError(
                f"{path} is a pointer of Git LFS, not the file that it stands for. Fetch that with "
                "git lfs pull, or download it, and give it."
            )


def _load(path, trust):
    allow()  # whoever has used torch's context manager for the same class has taken it away
    try:
        with mapping():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if not trust:
            raise
    logger.warning("WARNING: --trust-checkpoint: whatever code %s holds is run now.", path)
    return torch.load(path, map_location="cpu", weights_only=False)


@contextlib.contextmanager
def mapping() -> Iterator[None]:
    """Within, ``torch.load`` maps files in place of copying them.

    A tensor's bytes are read when they are used, and what is never used, as an optimizer's state
    beside the weights, not at all; they are the file's pages, which the system can take back, so a
    model of 13 GB starts in 13 GB and not in 26. Tensors may be written to, as ever: the file stays
    as it is. Whoever keeps one that was not copied has to leave the file alone; files of this
    plugin and fairseq's checkpoints are replaced, never written over.
    """
    original = torch.load

    def load(file, *args, **kwargs):
        path = getattr(file, "name", file)  # fairseq gives what it has opened
        if _can_be_mapped(path):
            file, kwargs = path, {**kwargs, "mmap": True}
        return original(file, *args, **kwargs)

    torch.load = load
    try:
        yield
    finally:
        torch.load = original


def write(out: Path, content: dict) -> None:
    """Write a checkpoint: there whole, or not at all.

    Raises:
        InputError: it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole(out) as temporary, open(temporary, "wb") as file:
            torch.save(content, file)
    except OSError as error:
        raise unwritten(out, error) from error


def _can_be_mapped(path):
    """Whether it is a file of torch 1.6 or later, as torch writes it: an archive without
    compression; and has a path that torch's maps take."""
    if not isinstance(path, (str, os.PathLike)) or not is_utf8(path):
        return False
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
