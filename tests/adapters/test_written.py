"""An adapter folder changes as a whole: killed, read meanwhile, on a full disk."""

from __future__ import annotations

import itertools
import os
import random
import resource
import signal
import time

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import adapter_folders  # noqa: E402

from fairseq_peft import folders  # noqa: E402
from fairseq_peft.adapters import folder as adapter_folder  # noqa: E402
from fairseq_peft.models import folder as folders_model  # noqa: E402

DESCRIBED = {
    "method": {"peft": "lora", "knobs": {}, "targets": []}, "model": {}, "labels": ["a", "b"],
    "head": {"name": "head", "kind": "linear", "num_classes": 2}, "complete": True, "base": None,
    "input": {"max_tokens": 9, "begin": True, "num_texts": 1},
    "dictionary": {"sha256": "", "num_rows": 9},
}  # fmt: skip


def start_writer(folder, words):
    """A process that does nothing but write versions of ``folder``, each higher than the last."""
    first = adapter_folder.read(folder).description["version"] + 1 if folder.parent.exists() else 0
    child = os.fork()
    if child:
        return child
    try:
        for version in itertools.count(first):
            tensors = {"x": torch.full((9_000,), version)}
            adapter_folder.write(
                folder, tensors, {**DESCRIBED, "version": version}, {"dict.txt": words}
            )
    finally:
        os._exit(1)


def kill(process):
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


@pytest.mark.parametrize("exchanges", [True, False], ids=["one step", "two steps"])
def test_killed_at_any_moment_it_leaves_a_whole_folder(tmp_path, exchanges, monkeypatch):
    """50 times a process that does nothing but write is killed, and what it leaves is whole."""
    if not exchanges:  # as where the file system cannot let two folders change names
        monkeypatch.setattr(folders, "_exchange", lambda a, b: False)
    adapter, words, rng = tmp_path / "run/adapter", tmp_path / "words", random.Random(1)
    words.write_text("w 1\n")
    last = -1
    for _ in range(50):
        process = start_writer(adapter, words)
        while last == -1 and not (adapter / "adapter.json").exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        kill(process)
        found = adapter_folder.read(adapter)
        assert found.description["version"] >= last
        last = found.description["version"]
        assert found.tensors["x"].eq(last).all()
    assert last > 5


@pytest.mark.parametrize("exchanges", [True, False], ids=["one step", "two steps"])
def test_a_reader_sees_whole_versions_only(tmp_path, exchanges, monkeypatch):
    """Each newer than the one before, while a process writes them as fast as it can."""
    if not exchanges:
        monkeypatch.setattr(folders, "_exchange", lambda a, b: False)
    adapter, words, seen = tmp_path / "run/adapter", tmp_path / "words", [-1]
    words.write_text("w 1\n")
    process = start_writer(adapter, words)
    try:
        while not (adapter / "adapter.json").exists():
            time.sleep(0.001)
        while len(set(seen)) < 12:
            found = adapter_folder.read(adapter)
            seen.append(found.description["version"])
            assert found.tensors["x"].eq(seen[-1]).all() and seen[-1] >= seen[-2]
    finally:
        kill(process)


def test_a_full_disk_is_one_sentence_and_leaves_the_old(dictionary, base, copy):
    """The system itself refuses: no file may grow beyond 2,000 bytes."""
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    model = adapter_folders.perturbed(dictionary, base, seed=4)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    tensors, described = folders_model.content(model, "head", None)
    words = {"dict.txt": copy.parent / "w"}
    words["dict.txt"].write_text("w 1\n")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        text = adapter_folders.refused(adapter_folder.write, copy, tensors, described, words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(copy) in text and "cannot be written (File too large)" in text
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert sorted(path.name for path in copy.parent.iterdir()) == ["adapter", "w"]


def test_a_folder_that_cannot_be_made_is_one_sentence(dictionary, base, tmp_path):
    (tmp_path / "file").write_text("")
    model = adapter_folders.perturbed(dictionary, base)
    tensors, described = folders_model.content(model, "head", None)
    where = tmp_path / "file" / "adapter"
    assert "cannot be written" in adapter_folders.refused(
        adapter_folder.write, where, tensors, described, {}
    )
    if os.geteuid() != 0:  # for root every folder can be written to
        (tmp_path / "shut").mkdir(mode=0o555)
        where = tmp_path / "shut" / "adapter"
        assert "Permission denied" in adapter_folders.refused(
            adapter_folder.write, where, tensors, described, {}
        )


def test_what_is_no_adapters_is_not_replaced(dictionary, base, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "notes.txt").write_text("precious")
    model = adapter_folders.perturbed(dictionary, base)
    tensors, described = folders_model.content(model, "head", None)
    text = adapter_folders.refused(
        adapter_folder.write, tmp_path / "adapter", tensors, described, {}
    )
    assert "holds notes.txt" in text
    assert (tmp_path / "adapter" / "notes.txt").read_text() == "precious"


def test_what_a_file_browser_leaves_is_passed_over_and_carried_over(good, copy):
    """An .nfs file is of a process that has a removed file open: it goes with it."""
    found, folder = adapter_folder.read(good), copy
    for name in (".DS_Store", "Thumbs.db", "._adapter.json", ".nfs000001"):
        (folder / name).write_bytes(b"x")
    adapter_folder.check_place(folder)
    rest = {k: v for k, v in found.description.items() if k not in ("json_sha256", "schema")}
    for _ in range(2):
        copies = {name: good / name for name in ("dict.txt", "sentencepiece.bpe.model")}
        copies = {name: path for name, path in copies.items() if path.exists()}
        adapter_folder.write(folder, found.tensors, rest, copies)
        again = adapter_folder.read(folder)
        assert again.description["files"].keys() == found.description["files"].keys()
        left = {path.name for path in folder.iterdir()} - set(adapter_folder.FILES)
        assert left == {".DS_Store", "Thumbs.db", "._adapter.json"}


def test_the_content_of_a_folder_that_was_being_moved_is_found(good, copy):
    os.rename(copy, copy.with_name(".adapter.old"))  # killed between the two moves
    assert folders.current(copy) == copy.with_name(".adapter.old")
    assert adapter_folder.read(copy).tensors.keys() == adapter_folder.read(good).tensors.keys()
    with folders.replaced(copy) as new:
        (new / "x").write_text("new")
    assert [path.name for path in copy.parent.iterdir()] == ["adapter"]


def test_a_link_to_a_folder_stays_a_link(dictionary, base, copy, tmp_path):
    (tmp_path / "link").symlink_to(copy)
    model = adapter_folders.perturbed(dictionary, base, seed=8)
    for _ in range(2):
        adapter_folders.write(tmp_path / "link", model, base)
    assert (tmp_path / "link").is_symlink() and not (tmp_path / ".link.new").exists()
    found = adapter_folder.read(copy).tensors
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in found.items())
