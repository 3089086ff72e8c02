"""Fixtures: whole adapter folders of tiny models."""

from __future__ import annotations

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


@pytest.fixture
def copy(good, tmp_path):
    return shutil.copytree(good, tmp_path / "adapter")
