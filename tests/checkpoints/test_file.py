"""A file that cannot be opened, or written, is not a damaged one; one that can is mapped."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from fairseq import checkpoint_utils  # noqa: E402

import fairseq_peft  # noqa: E402, F401  (whose reading fairseq's is)
from fairseq_peft.checkpoints import file, finetuned  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402


def test_what_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(InputError, match=r"cannot be opened \(Permission denied\)") as caught:
        file.read(str(tmp_path / "model.pt"))
    assert "damaged" not in str(caught.value)


def test_a_place_that_takes_no_file_is_one_sentence(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):  # as torch.save does in a folder that may not be written
        raise RuntimeError("File merged.pt cannot be opened.\nmore")

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(InputError, match=r"cannot be written \(File merged\.pt cannot be opened"):
        finetuned.write(tmp_path / "merged.pt", {}, {}, {})
    assert list(tmp_path.iterdir()) == []


STATE = {
    "model": {"weight": torch.arange(5000.0)},
    "args": None,
    "cfg": None,
    "optimizer_history": [{"num_updates": 1, "lr_scheduler_state": {}}],
    "extra_state": {"train_iterator": {"epoch": 1}},
}


def compressed(path):
    """The same archive, as torch never writes it and yet reads it."""
    with zipfile.ZipFile(path) as archive:
        content = [(entry, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in content:
            archive.writestr(entry.filename, data)


@pytest.mark.skipif(sys.platform != "linux", reason="the maps of a process are Linux's")
@pytest.mark.parametrize("how", ("ours", "fairseq's"))
@pytest.mark.parametrize(
    "form, mapped", [("today's", True), ("before torch 1.6", False), ("compressed", False)]
)
def test_a_checkpoint_is_mapped_where_its_form_allows(tmp_path, form, mapped, how):
    path = tmp_path / "model.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=form != "before torch 1.6")
    if form == "compressed":
        compressed(path)
    before = path.read_bytes()
    read = file.read if how == "ours" else checkpoint_utils.load_checkpoint_to_cpu
    weight = read(str(path))["model"]["weight"]
    assert (str(path) in Path("/proc/self/maps").read_text()) == mapped
    assert torch.equal(weight, STATE["model"]["weight"])
    weight.zero_()
    assert path.read_bytes() == before
    del weight
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert torch.load.__module__ == "torch.serialization"


def test_a_path_may_hold_any_bytes(tmp_path):
    """No map takes it, and without one it is read."""
    path = tmp_path / os.fsdecode(b"r\xff.pt")
    with open(path, "wb") as out:
        torch.save(STATE, out)
    for read in (file.read, checkpoint_utils.load_checkpoint_to_cpu):
        assert torch.equal(read(str(path))["model"]["weight"], STATE["model"]["weight"])


def test_a_mapped_checkpoint_may_be_replaced_by_what_was_read_from_it(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(STATE, path)
    state = file.read(str(path))
    state["model"]["weight"][0] = 7
    finetuned.write(path, {}, {}, state["model"])
    assert file.read(str(path))["model"]["weight"].tolist() == [7, *range(1, 5000)]
    assert state["model"]["weight"].tolist() == [7, *range(1, 5000)]
