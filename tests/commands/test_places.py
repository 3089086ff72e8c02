"""``--force`` writes over a folder of the same kind, and throws nothing else away."""

from __future__ import annotations

import pytest

from fairseq_peft.commands import export, prefix_texts
from fairseq_peft.commands.export import check_out
from fairseq_peft.errors import InputError
from fairseq_peft.hf import merged_folder
from fairseq_peft.serving import onnx_folder
from fairseq_peft.text import bpe


@pytest.mark.parametrize(
    "name",
    [
        *bpe.FILES,
        *merged_folder.COPIES,
        *(merged_folder.GENERATION, onnx_folder.MODEL, onnx_folder.DESCRIPTION),
        *("model.pt", "dict.txt", "dict.en_XX.txt", "README.md", ".DS_Store", "config.json"),
        *("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
        *("adapter_config.json", "adapter_model.safetensors", "labels.json", "pytorch_model.bin"),
    ],
)
def test_what_these_commands_write_may_be_written_over(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(InputError, match="exists. Give another name, or --force"):
        check_out(tmp_path, False, ())
    check_out(tmp_path, True, ())


@pytest.mark.parametrize("name", ["thesis.txt", "checkpoint_best.pt", "adapter.json", "run.json"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_they_do_not_write_is_kept(tmp_path, name, kind):
    (tmp_path / "model.pt").touch()
    (tmp_path / name).touch() if kind == "file" else (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"holds {name}, which is none of the files"):
        check_out(tmp_path, True, ())


def test_texts_are_written_over_by_texts_alone(tmp_path):
    (tmp_path / "train.review").touch()
    check_out(tmp_path, True, (), prefix_texts.TEXTS)
    with pytest.raises(InputError, match="holds train.review"):
        check_out(tmp_path, True, (), export.WRITTEN)


def test_what_is_read_is_not_written_over(tmp_path, monkeypatch):
    (tmp_path / "hf").mkdir()
    base = tmp_path / "hf" / "model.pt"
    base.touch()
    monkeypatch.chdir(tmp_path / "hf")
    for out in (tmp_path / "hf", base.parent.parent / "hf" / ".", export.Path(".")):
        for read in (base, tmp_path / "hf"):
            with pytest.raises(InputError, match="which is read"):
                check_out(out, True, (None, read))
