"""The cells of a sweep: a start, a method with its flags, and the learning rates to try."""

from __future__ import annotations

import difflib
import re
import shlex
from dataclasses import dataclass

from fairseq_peft.errors import InputError
from fairseq_peft.sweeps.bases import is_folder

#: Cells of a sweep where none are named.
USUAL = (
    *("scratch/full", "pretrained/full", "pretrained/head_only", "pretrained/lora"),
    *("pretrained/adapter", "pretrained/prompt"),
)
#: Learning rates of a cell that starts from scratch, and what names them instead of the method.
FROM_SCRATCH, SCRATCH = ("1e-4", "2e-4", "5e-4"), "SCRATCH"


def usual(base: str | None) -> list[str]:
    """The cells of a sweep on ``base`` where none are named."""
    if not is_folder(base):
        return list(USUAL)
    return [name for name in USUAL if name not in ("scratch/full", "pretrained/head_only")]


@dataclass(frozen=True)
class Cell:
    """What the runs of a cell have in common.

    Attributes:
        start: ``pretrained`` or ``scratch``.
        label: what reports call it: the method, or a name whose flags were given.
        method: a method, or several with + between.
        flags: more flags of fairseq-train.
        rates: learning rates; where there are several, valid chooses.
    """

    start: str
    label: str
    method: str
    flags: tuple[str, ...]
    rates: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.start}/{self.label}"

    @property
    def leaves_base(self) -> bool:
        """Whether its runs can be members on one frozen base."""
        return self.start != "scratch" and self.method != "full"


def read(names: list[str], flags: dict[str, str], rates: dict[str, str]) -> list[Cell]:
    """The cells called ``names``.

    Args:
        names: start/method each; one may be a name of the user's own.
        flags: name -> flags of a name of the user's own, or more flags of a method.
        rates: name -> learning rates; ``SCRATCH``: of every cell from scratch.

    Raises:
        InputError: a cell, a method or a rate cannot be, or flags or rates belong to no cell.
    """
    check_twice(names, "cell")
    if not names:
        raise InputError("A sweep needs cells, such as pretrained/lora.")
    flags, rates = _by_key(flags.items(), "FLAGS"), _by_key(rates.items(), "LR")
    starts = {name: tuple(name.split("/", 1)) for name in names}
    for name, parts in starts.items():
        if len(parts) < 2 or parts[0] not in ("pretrained", "scratch") or not parts[1]:
            raise InputError(
                f"The cell {name!r} is no start/method: give pretrained/METHOD or scratch/METHOD, "
                "such as pretrained/lora."
            )
    labels = [label for _, label in starts.values()]
    _check_told_apart(labels)
    _check_used(flags, dict.fromkeys(map(key, labels)), "FLAGS", "flags")
    grids = [SCRATCH if start == "scratch" else key(label) for start, label in starts.values()]
    _check_used(rates, dict.fromkeys([*grids, SCRATCH]), "LR", "learning rates")
    return [
        _cell(start, label, flags.get(key(label), ""), rates) for start, label in starts.values()
    ]


def key(label: str) -> str:
    """How a variable calls a cell: ``lora+prefix`` -> ``LORA_PREFIX``."""
    return re.sub("[+,.-]", "_", label).upper()


def _check_told_apart(labels):
    """Flags and rates are looked up by the variable's spelling, as scripts/sweep.sh gives them."""
    first = {}
    for label in labels:
        other = first.setdefault(key(label), label)
        if other != label:
            raise InputError(
                f"The cells {other!r} and {label!r} would share their flags and rates "
                f"(FLAGS_{key(label)}, LR_{key(label)}): give one of them another name."
            )


def check_twice(given: list, what: str) -> None:
    """Raise InputError where a list names something twice."""
    twice = next((one for one in given if given.count(one) > 1), None)
    if twice is not None:
        listed = " ".join(map(str, given))
        raise InputError(f"'{listed}' names {twice} twice. Name each {what} once.")


def named(given: list[str], variable: str) -> dict[str, str]:
    """What ``NAME=TEXT`` words say, by ``key``.

    Args:
        variable: ``LR`` (--rates) or ``FLAGS`` (--cell-flags).

    Raises:
        InputError: a word is none of these, or two are of one cell.
    """
    pairs = []
    for one in given:
        name, sign, text = one.partition("=")
        if not sign or not name:
            raise InputError(f"{one!r}: expected NAME=..., such as lora=1e-3.")
        pairs.append((name, text))
    return _by_key(pairs, variable)


def _by_key(pairs, variable):
    found, names = {}, {}
    for name, text in pairs:
        other = names.setdefault(key(name), name)
        if key(name) in found:
            raise InputError(
                f"{_called(variable, key(name))} was given twice: {other}, {name}. Say all of it "
                "once."
            )
        found[key(name)] = text
    return found


def _check_used(given, known, variable, what):
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            listed = ", ".join(_called(variable, one) for one in known)
            raise InputError(
                f"{_called(variable, name)} would be ignored: no cell of this sweep has such "
                f"{what}. "
                + (f"Is {_called(variable, near[0])} meant?" if near else f"There are: {listed}.")
            )


def _called(variable, name):
    """``--rates lora= (LR_LORA)``: as fairseq-peft has it, and as scripts/sweep.sh."""
    flag = {"LR": "--rates", "FLAGS": "--cell-flags"}[variable]
    return f"{flag} {name.lower()}= ({variable}_{name})"


def _cell(start, label, flags, rates):
    try:
        words = shlex.split(flags)
    except ValueError as error:
        raise InputError(
            f"{_called('FLAGS', key(label))} cannot be read ({error}): {flags}"
        ) from None
    method = label
    if words[:1] == ["--peft"]:
        method, words = (words[1:2] or [""])[0], words[2:]
    usual = _usual_rates(start, label, method)
    name = SCRATCH if start == "scratch" else key(label)
    grid = tuple(rates[name].replace(",", " ").split()) if name in rates else usual
    for rate in grid:
        _check_rate(rate, _called("LR", name))
    check_twice(list(grid), "learning rate")
    if not grid:
        raise InputError(
            f"{_called('LR', name)} names no learning rate. Give one or several, such as 1e-3."
        )
    return Cell(start, label, method, tuple(words), grid)


def _check_rate(rate, variable):
    try:
        if float(rate) > 0 and float(rate) < float("inf"):
            return
    except ValueError:
        pass
    raise InputError(f"{variable}: {rate!r} is no learning rate. Give positive numbers.")


def _usual_rates(start, label, method):
    from fairseq_peft import methods

    try:
        usual = methods.usual_rates(method)
    except InputError as error:
        own = (
            f" A name of your own needs {_called('FLAGS', key(label))}." if method == label else ""
        )
        raise InputError(f"The cell {start}/{label}: {error}{own}") from None
    return FROM_SCRATCH if start == "scratch" else tuple(usual)
