"""A file that cannot be opened, or written, is not a damaged one."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

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
