"""Checkpoints to convert, a folder that was converted, adapter folders on a checkpoint."""

from __future__ import annotations

import pytest
from verbs import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """dict.txt, a sentencepiece model, and lm.pt and classifier.pt on them."""
    import hf_models

    folder = tmp_path_factory.mktemp("models")
    dictionary = hf_models.write_tokenizer(folder)
    hf_models.write_checkpoint(folder / "lm.pt", dictionary)
    hf_models.write_checkpoint(folder / "classifier.pt", dictionary, 2)
    hf_models.write_checkpoint(folder / "three.pt", dictionary, 3)
    return folder


@pytest.fixture
def converted(folder, tmp_path):
    run("to-hf", folder / "classifier.pt", tmp_path / "hf", "--no-check")
    return tmp_path / "hf"


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    """method -> an adapter folder on lm.pt, with its dictionary and sentencepiece model."""
    import adapter_folders

    from fairseq_peft.hf import base_model

    base = base_model.read(folder / "lm.pt", folder / "dict.txt")

    def make(method, **flags):
        path = tmp_path_factory.mktemp(method) / "adapter"
        model = adapter_folders.perturbed(base.dictionary, base.weights, method, **flags)
        adapter_folders.write(path, model, base.weights, folder / "lm.pt")
        return path

    return make
