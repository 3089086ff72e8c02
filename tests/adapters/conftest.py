"""Fixtures: whole adapter folders of tiny models."""

from __future__ import annotations

import functools
import shutil

import pytest


@pytest.fixture(scope="module")
def base(dictionary):
    adapter_folders = pytest.importorskip("adapter_folders")
    return adapter_folders.base_state(dictionary)


@pytest.fixture(scope="module")
def good(dictionary, base, tmp_path_factory):
    """A LoRA folder; tests that change it work on a copy."""
    import adapter_folders

    model = adapter_folders.perturbed(dictionary, base)
    return adapter_folders.write(tmp_path_factory.mktemp("good") / "adapter", model, base)


@pytest.fixture(scope="module")
def other(dictionary, tmp_path_factory):
    """Another whole folder: of IA3, on another base."""
    import adapter_folders

    base = adapter_folders.base_state(dictionary, seed=12)
    model = adapter_folders.perturbed(dictionary, base, "ia3")
    return adapter_folders.write(tmp_path_factory.mktemp("other") / "adapter", model, base, seed=2)


@pytest.fixture(scope="module")
def folders(good, other, dictionary, tmp_path_factory):
    """``folders("bart")``: a whole adapter folder of that family, and another."""

    def make(family):
        if family == "roberta":
            return good, other
        from adapter_folders import write_text
        from families import BART
        from hf_families import Kind

        place = tmp_path_factory.mktemp(family)
        kind = BART(dictionary) if family == "bart" else Kind("t5", place)
        made = (("good", "lora", 11), ("other", "ia3", 12))
        return [write_text(place / n / "adapter", kind, peft, seed) for n, peft, seed in made]

    return functools.lru_cache(make)


@pytest.fixture
def copy(good, tmp_path):
    return shutil.copytree(good, tmp_path / "adapter")
