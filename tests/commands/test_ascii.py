"""A terminal whose encoding lacks a character, as under LC_ALL=C: an escape, and no traceback."""

from __future__ import annotations

import io
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import adapter_folders  # noqa: E402

from fairseq_peft import cli  # noqa: E402


@pytest.fixture
def base(dictionary, tmp_path):
    return adapter_folders.save_base(tmp_path / "base.pt", adapter_folders.base_state(dictionary))


@pytest.fixture
def adapter(dictionary, base, tmp_path):
    weights = torch.load(base, weights_only=True)["model"]
    model = adapter_folders.perturbed(dictionary, weights, "lora")
    model.args._name = "roberta_small_lora"
    folder = tmp_path / "run" / "adapter"
    return adapter_folders.write(folder, model, weights, base, labels=["mauvais", "été ±"])


@pytest.fixture
def shown(monkeypatch):
    """shown(*words) -> the bytes that the verb prints where there is ASCII alone."""

    def show(*words):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
        monkeypatch.setattr(sys, "stdout", stream)
        assert cli.main([str(word) for word in words]) == 0
        stream.flush()
        return stream.buffer.getvalue()

    return show


def test_inspect(adapter, shown):
    assert b"2 classes (mauvais, \\xe9t\\xe9 +-)" in shown("inspect", adapter)
    assert b"\\xe9t\\xe9" in shown("inspect", adapter, "--json")


def test_export(adapter, base, tmp_path, shown):
    said = shown("export", adapter, tmp_path / "theirs", "--base", base)
    assert said.rstrip().endswith(b"classes mauvais, \\xe9t\\xe9 +-")
