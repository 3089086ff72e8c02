"""Sizes of a model that are its base's: each family says in a table where they are to be read.

What the base's tensors show counts; what they do not show, its args say (``args``, or ``cfg``);
what neither tells has a default, or is asked for. RoBERTa's table stands in ``roberta.py``::

    SIZES = BaseSizes(
        Size("encoder_layers", num_layers("encoder.layers.")),
        Size("encoder_attention_heads", divides="encoder_embed_dim"),   # no tensor shows it
        Size("activation_fn", default="gelu"),                          # where args are silent
        words="encoder.embed_tokens.weight", names=renamed, kind="RoBERTa",
    )

Another family takes part with a table of its own, and in four places:

    ``base_sizes = SIZES``                   attribute of its ``PeftModel``
    ``SIZES.name(arch, any_size, sizes)``    where it registers an architecture
    ``from_start(args, SIZES, arch)``        first in what completes the flags of an architecture,
                                             which then sets what nobody has set (``options.fill``)
    ``check_known(args, SIZES)``             first in ``build_model``

A flag that nobody has set has to be None, or missing, in ``args``: that is what a base fills.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Callable, NamedTuple

import torch

from fairseq_peft.checkpoints import file as checkpoint_file
from fairseq_peft.checkpoints import start as run_start
from fairseq_peft.errors import InputError
from fairseq_peft.models.options import fill

#: name -> tensor, by today's names
Tensors = Mapping[str, torch.Tensor]


class Size(NamedTuple):
    """One flag that the base decides.

    Attributes:
        flag: its name in ``args``, such as ``encoder_layers``.
        shown: the value that tensors show; None where they show none. Without it, none ever do.
        default: what holds where neither tensors nor args tell; None: the user has to say it.
        divides: the flag whose value has to be a multiple of this one; else args are not believed.
        asked: whether the user is asked for it where nothing tells.
    """

    flag: str
    shown: Callable[[Tensors], Any] | None = None
    default: Any = None
    divides: str | None = None
    asked: bool = True


# ---- What tensors show ---------------------------------------------------------------------------


def num_layers(prefix: str):
    """The number of layers whose tensors are called ``prefix`` + "0.", "1.", ..."""
    layer = re.compile(re.escape(prefix) + r"(\d+)\.")
    return lambda tensors: len({m[1] for m in map(layer.match, tensors) if m}) or None


def num_rows(name: str, less: int = 0):
    """The first dimension of a tensor, less ``less``."""
    return lambda tensors: len(tensors[name]) - less if name in tensors else None


def num_columns(name: str):
    """The second dimension of a tensor."""
    return lambda tensors: tensors[name].shape[1] if name in tensors else None


def is_there(name: str):
    """Whether there is such a tensor."""
    return lambda tensors: name in tensors


def if_there(name: str, value):
    """``value`` where there is such a tensor; where there is none, nothing is shown."""
    return lambda tensors: value if name in tensors else None


def is_untied(name: str, other: str):
    """True where two tensors differ. Where they are equal they may have been untied all the same,
    and where one is missing nothing is shown."""

    def shown(tensors):
        found, tied = tensors.get(name), tensors.get(other)
        if found is None or tied is None:
            return None
        return None if torch.equal(found, tied) else True

    return shown


# ---- The table of a family -----------------------------------------------------------------------


class BaseSizes:
    """The sizes of a family of models that a base decides.

    Args:
        sizes: what is read.
        words: name of the token embedding: what every base of the family has.
        names: a base's tensors -> the same by today's names.
        kind: what the family is called in messages.
        only: flag -> the one value that the family's model computes; a base whose args say
            something else is refused.
    """

    def __init__(
        self,
        *sizes: Size,
        words: str,
        names: Callable[[dict], dict],
        kind: str,
        only: Mapping[str, Any] | None = None,
    ):
        self.sizes = sizes
        self.words = words
        self.names = names
        self.kind = kind
        self.only = dict(only or {})
        self.any_size = {}
        self.named = {}

    def name(self, arch: str, any_size: str, sizes: Mapping[str, Any] | None = None) -> None:
        """Make an architecture known.

        Args:
            arch: what ``--arch`` says.
            any_size: the architecture of the same method that takes its sizes from the base.
            sizes: flag -> value that the name ``arch`` stands for.
        """
        self.any_size[arch] = any_size
        self.named[arch] = dict(sizes or {})

    def read(self, state: dict, path: str) -> dict[str, Any]:
        """Flag -> value of the base ``state``; None where neither its tensors nor its args tell.

        A slim checkpoint lacks tensors, and was written by this plugin: its args count.

        Raises:
            InputError: it is of another family, or computes what this one does not.
        """
        tensors = {} if checkpoint_file.SLIM in state else self.names(state["model"])
        if tensors and self.words not in tensors:
            raise InputError(f"{path} has no {self.words}: it is no {self.kind} of fairseq's.")
        told = checkpoint_file.told(state)
        for flag, value in self.only.items():
            if told.get(flag) not in (None, value):
                known = f": it knows {value}" if value else ""
                raise InputError(
                    f"{path} was trained with {flag} {told[flag]}, which the plugin's {self.kind} "
                    f"does not compute{known}. Give another base."
                )
        found = {}
        for size in self.sizes:
            value = size.shown(tensors) if size.shown and tensors else None
            if value is None:
                value = _believed(size, told, found)
            found[size.flag] = size.default if value is None else value
        return found


def _believed(size, told, found):
    """What args say of ``size``; None where that cannot be."""
    value = told.get(size.flag)
    if size.divides is None:
        return value
    whole = found.get(size.divides)
    fits = isinstance(value, int) and value > 0 and whole and whole % value == 0
    return value if fits else None


# ---- Into the flags of a run ---------------------------------------------------------------------


def from_start(args, table: BaseSizes, arch: str) -> None:
    """Complete the flags ``args`` of a command line for ``--arch arch``: what its name stands for,
    and the rest from the file that training will start from, if there is one.

    Other flags than those of a whole command line name no file: nothing is read then.

    Raises:
        InputError: as ``complete``, and where the file cannot be read.
    """
    fill(args, table.named[arch])
    path = start_path(args)
    if path is not None:
        told = os.stat(path)
        found = _read_file(table, os.path.realpath(path), told.st_mtime_ns, told.st_size)
        _complete(args, table, arch, found, path)


def start_path(args) -> str | None:
    """The checkpoint that fairseq-train will load, by its flags; None if there is no such file."""
    path = getattr(args, "restore_file", None)
    if path is not None and getattr(args, "save_dir", None) is not None:  # it trains
        path = run_start.chosen(args)
    return path if path and os.path.isfile(path) else None


@lru_cache(maxsize=8)
def _read_file(table, path, *version):
    """The sizes of a file as it is now: each run reads the base for them no more than once."""
    return table.read(checkpoint_file.read(path), path)


def complete(args, table: BaseSizes, arch: str, state: dict, path: str) -> None:
    """Complete the flags ``args`` for ``--arch arch`` from the base ``state`` of ``path``.

    Raises:
        InputError: the name of the architecture or a flag says something else than the base, or the
            base does not tell what it has to.
    """
    fill(args, table.named[arch])
    _complete(args, table, arch, table.read(state, path), path)


def _complete(args, table, arch, found, path):
    wrong = {
        flag: (getattr(args, flag), value)
        for flag, value in found.items()
        if value is not None and getattr(args, flag, None) not in (None, value)
    }
    if wrong:
        raise InputError(_contradiction(table, arch, wrong, path))
    fill(args, found)
    for size in table.sizes:
        if size.asked and getattr(args, size.flag, None) is None:
            raise InputError(_unknown(size, found, path))


def _contradiction(table, arch, wrong, path):
    """What to say where ``wrong``, flag -> (as given, the base's), is not empty."""
    own, pairs = table.named[arch], wrong.items()
    differ = ", ".join(f"{flag} {given} (the base has {base})" for flag, (given, base) in pairs)
    fit = [word for flag, (_, base) in pairs for word in _words(flag, base)]
    typed = [_dashed(flag) for flag, (given, _) in pairs if own.get(flag) != given]
    drop = f" without {' '.join(typed)}" if typed else ""
    text = (
        f"--arch {arch} and its flags do not fit {path}: {differ}. Give --arch "
        f"{table.any_size[arch]}{drop}, which takes its sizes from the base"
    )
    # A switch that is on cannot be typed off.
    off = any(base is False for _, base in wrong.values())
    return f"{text}." if off else f"{text}, or {' '.join(fit)}."


def _dashed(flag):
    return "--" + flag.replace("_", "-")


def _words(flag, value):
    """What is typed for ``flag``."""
    return [_dashed(flag)] if value is True else [_dashed(flag), str(value)]


def _unknown(size, found, path):
    whole = found.get(size.divides)
    hint = ""
    if whole:
        usual = f"; {whole // 64} is usual" if whole % 64 == 0 else ""
        hint = f", a divisor of its {size.divides} {whole}{usual}"
    return (
        f"{path} does not say its {size.flag}, and its tensors do not show it. Give "
        f"{_dashed(size.flag)}{hint}."
    )


def check_known(args, table: BaseSizes) -> None:
    """Raise InputError where neither a name, nor a flag, nor a base has said all sizes."""
    missing = [s.flag for s in table.sizes if s.asked and getattr(args, s.flag, None) is None]
    if missing:
        flags = ", ".join(map(_dashed, missing))
        raise InputError(
            f"--arch {args._name} takes its sizes from the base, and there is none. Give one "
            f"(--finetune-from-model), an --arch with a size in its name, or {flags}."
        )
