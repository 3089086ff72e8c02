"""An adapter folder changes as a whole: killed, read meanwhile, on a full disk."""

from __future__ import annotations

import itertools
import os
import resource

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import adapter_folders  # noqa: E402
import moments  # noqa: E402
import unprivileged  # noqa: E402

from fairseq_peft import folders  # noqa: E402
from fairseq_peft.adapters import folder as adapter_folder  # noqa: E402
from fairseq_peft.models import folder as folders_model  # noqa: E402

DESCRIBED = {
    "method": {"peft": "lora", "knobs": {}, "targets": []}, "model": {}, "labels": ["a", "b"],
    "head": {"name": "head", "kind": "linear", "num_classes": 2}, "complete": True, "base": None,
    "input": {"max_tokens": 9, "begin": True, "num_texts": 1},
    "dictionary": {"sha256": "", "num_rows": 9},
}  # fmt: skip


def put(folder, version, words):
    tensors = {"x": torch.full((9_000,), version)}
    adapter_folder.write(folder, tensors, {**DESCRIBED, "version": version}, {"dict.txt": words})


def version_of(folder):
    """Of the folder that is there, whole."""
    found = adapter_folder.read(folder)
    assert found.tensors["x"].eq(found.description["version"]).all()
    return found.description["version"]


@pytest.fixture(params=[True, False], ids=["one step", "two steps"])
def adapter(request, tmp_path, monkeypatch):
    """A folder of version 0, where a file system can let two folders change names, and cannot."""
    if not request.param:
        monkeypatch.setattr(folders, "_exchange", lambda a, b: False)
    (tmp_path / "words").write_text("w 1\n")
    put(tmp_path / "run/adapter", 0, tmp_path / "words")
    return tmp_path / "run/adapter"


def test_killed_at_any_moment_it_leaves_a_whole_folder(adapter, tmp_path):
    """A process that writes the next version is killed at each of its moments in turn."""
    seen = [0]
    for nth in itertools.count(1):
        version = seen[-1] + 1
        killed = moments.killed_at(nth, lambda: put(adapter, version, tmp_path / "words"))  # noqa: B023
        seen.append(version_of(adapter))
        assert seen[-1] in (version - 1, version)
        if not killed:
            break
    assert seen[-1] == version and seen[-2] > 0 and nth > 20
    assert [path.name for path in adapter.parent.iterdir()] == ["adapter"]


def test_a_reader_sees_whole_versions_only(adapter, tmp_path):
    """One that comes at any moment of a writer, and one that a writer comes between."""
    seen = []
    with moments.at_each(lambda: seen.append(version_of(adapter))):
        put(adapter, 1, tmp_path / "words")
    assert seen == sorted(seen) and {*seen} == {0, 1}

    for nth in itertools.count(1):
        version = nth + 1
        with moments.at_the(nth, lambda: put(adapter, version, tmp_path / "words")) as num_moments:  # noqa: B023
            found = version_of(adapter)
        if num_moments() < nth:
            break
        assert found in (version - 1, version)
    assert nth > 5


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
    (tmp_path / "shut").mkdir(mode=0o555)
    words = (adapter_folder.write, tmp_path / "shut" / "adapter", tensors, described, {})
    said = unprivileged.said_without_rights(lambda: adapter_folders.refused(*words))
    assert "Permission denied" in said and list((tmp_path / "shut").iterdir()) == []


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
