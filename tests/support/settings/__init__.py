"""Every setting that the tests run: each method with its defaults, and the lists of this folder.

A file ``<method>.py`` here holds ``SETTINGS``, a list of (``--peft``, flags): one entry for every
choice of knobs that puts tensors somewhere else or computes something else, and some unions. A
method without such a file runs with its defaults.
"""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from fairseq_peft import methods


def identifier(peft: str, given: dict) -> str:
    """``lora-fc1-3``: what pytest shows."""
    return "-".join([peft, *map(str, given.values())])


def collect() -> list[tuple[str, dict]]:
    """All settings."""
    listed = [(name, {}) for name in methods.available()]
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        listed += importlib.import_module(f"{__name__}.{module}").SETTINGS
    return listed


def parametrize(settings):
    """A test of ``peft`` and ``given``, for each of ``settings``."""
    names = [identifier(*setting) for setting in settings]
    assert len(set(names)) == len(names), "two settings have one name"
    return pytest.mark.parametrize("peft, given", settings, ids=names)
