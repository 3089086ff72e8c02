"""The methods, found by looking: each file of this folder but ``base`` holds one."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import fields

from fairseq_peft.errors import InputError


def available() -> list[str]:
    """Names of all methods, without importing them."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name != "base")


def get(name: str):
    """The method called ``name``.

    Raises:
        InputError: there is none.
    """
    if name not in available():
        raise InputError(f"--peft {name!r} is unknown. Methods here: {', '.join(available())}.")
    module = importlib.import_module(f"{__name__}.{name}")
    return module.METHOD


def configure(name: str, given: dict):
    """The config of method ``name`` from flags.

    Args:
        name: the method.
        given: flag (attribute name, ``lora_rank``) -> value, for the flags that were set (None: not
            set).

    Raises:
        InputError: a value is out of range, or a flag belongs to another method and would be
            ignored.
    """
    from fairseq_peft.methods.base import flag_name

    method = get(name)
    own = {flag_name(name, field): field.name for field in fields(method.Config)}
    given = {flag: value for flag, value in given.items() if value is not None}
    ignored = sorted(set(given) - set(own))
    if ignored:
        flags = ", ".join("--" + flag.replace("_", "-") for flag in ignored)
        known = ", ".join("--" + flag.replace("_", "-") for flag in own) or "none"
        raise InputError(
            f"{flags} would be ignored: --peft {name} does not use it. Its flags: {known}. "
            "Leave the flag out, or choose the method it belongs to."
        )
    return method.Config(**{own[flag]: value for flag, value in given.items()})
