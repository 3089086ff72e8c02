"""Every setting that the contract runs: each method alone, and what the methods' tests add.

A file ``tests/methods/test_<method>.py`` may define ``SETTINGS``, a list of (``--peft``, flags):
one entry for every choice of knobs that puts tensors somewhere else or computes something else.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from fairseq_peft import methods


def identifier(peft: str, given: dict) -> str:
    """``lora-fc1-3``: what pytest shows."""
    return "-".join([peft, *map(str, given.values())])


def collect() -> list[tuple[str, dict]]:
    """All settings, each once."""
    found = [(name, {}) for name in methods.available()]
    for path in sorted((Path(__file__).parents[1] / "methods").glob("test_*.py")):
        if path.stem != "test_contract":
            found += getattr(importlib.import_module(path.stem), "SETTINGS", [])
    return list({identifier(*setting): setting for setting in found}.values())
