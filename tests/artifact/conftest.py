"""Fixtures: whole adapter folders of tiny models."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture(scope="module")
def base(dictionary):
    adapters = pytest.importorskip("adapters")
    return adapters.base_state(dictionary)


@pytest.fixture(scope="module")
def good(dictionary, base, tmp_path_factory):
    """A LoRA folder; tests that change it work on a copy."""
    import adapters

    model = adapters.perturbed(dictionary, base)
    return adapters.write(tmp_path_factory.mktemp("good") / "adapter", model, base)


@pytest.fixture(scope="module")
def other(dictionary, tmp_path_factory):
    """Another whole folder: of IA3, on another base."""
    import adapters

    base = adapters.base_state(dictionary, seed=12)
    model = adapters.perturbed(dictionary, base, "ia3")
    return adapters.write(tmp_path_factory.mktemp("other") / "adapter", model, base, seed=2)


@pytest.fixture
def copy(good, tmp_path):
    return shutil.copytree(good, tmp_path / "adapter")
