"""``files.whole``: the new content or the old one, never a part, and nothing left beside it."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys

import pytest
from helpers import ROOT

from fairseq_peft import folders
from fairseq_peft.errors import sentence
from fairseq_peft.files import add_line, json_of, json_text, remove_leftovers, whole
from fairseq_peft.folders import walk


def test_success_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with whole(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_failure_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="in the middle"), whole(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("in the middle")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    file, link = tmp_path / "disk" / "a.json", tmp_path / "a.json"
    file.write_text("old")
    link.symlink_to(file)
    with whole(link) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert link.is_symlink()
    assert file.read_text() == "new"
    file.unlink()
    with whole(link) as temporary:  # which leads nowhere yet
        temporary.write_text("newer")
    assert link.is_symlink()
    assert file.read_text() == "newer"


def test_a_pipe_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with whole(pipe) as place:
        place.write_text("rows")
    assert os.read(reader, 10) == b"rows"
    os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_walk_follows_links_once_and_last(tmp_path):
    for name in ("runs/b/x", "elsewhere/y"):
        (tmp_path / name).mkdir(parents=True)
    runs = tmp_path / "runs"
    (runs / "a").symlink_to(runs / "b")
    (runs / "c").symlink_to(tmp_path / "elsewhere")
    (runs / "b" / "up").symlink_to(runs)
    found = [str(path.relative_to(runs)) for path, _, _ in walk(runs)]
    assert found == [".", "b", "b/x", "c", "c/y"]


def test_what_a_killed_process_leaves_is_removed_and_nothing_else(tmp_path):
    kept = ["checkpoint_last.pt", ".merged.pt.7.tmp", "checkpoint_last.pt.7.tmp", ".checkpoint.pt"]
    left = [".checkpoint_last.pt.7.tmp", ".checkpoint.best_accuracy_56.2.pt.12.tmp"]
    for name in [*left, ".run.json.7.tmp", *kept]:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, "checkpoint*", "run.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_a_line_that_has_no_room_leaves_nothing_of_it(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "metrics.jsonl"
    add_line(path, "é" * 40)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(OSError, match="No space left"):
            add_line(path, "x" * 40)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    add_line(path, "whole")
    assert path.read_text(encoding="utf-8") == "é" * 40 + "\nwhole\n"


def no_room(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_room_for_a_copy(path):
    """As ``shutil.copyfile`` says it."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "source", None, str(path))


def no_room_for_torch(path):
    try:
        no_room(path)
    except OSError:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos") from None


def no_rights(path):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


@pytest.mark.parametrize("fails", [no_room, no_room_for_a_copy, no_room_for_torch, no_rights])
def test_what_cannot_be_written_has_its_name(tmp_path, fails):
    with pytest.raises(OSError) as file, whole(tmp_path / "a.pt") as temporary:
        fails(temporary)
    assert file.value.filename == str(tmp_path / "a.pt")
    there = folders.replaced(tmp_path / "new")
    with pytest.raises(OSError) as inside, there as new, whole(new / "a.pt") as temporary:
        fails(temporary)
    assert inside.value.filename == str(tmp_path / "new" / "a.pt")
    assert not list(tmp_path.iterdir())
    told = sentence(file.value)
    assert told.startswith(f"{tmp_path / 'a.pt'}: {os.strerror(file.value.errno)}. ")
    assert ("Make room there" in told) == (fails is not no_rights)


def test_a_folder_is_named_where_nothing_says_which_file(tmp_path):
    """As where a library writes the file."""
    with pytest.raises(OSError) as error, folders.replaced(tmp_path / "new") as new:
        no_room(new / "model.onnx")
    assert error.value.filename == str(tmp_path / "new")


def test_torch_says_no_reason(tmp_path):
    """What its own writer raises; the disk here has room."""
    said = "[enforce fail at inline_container.cc:672] . unexpected pos 1 vs 2"
    with pytest.raises(OSError, match="perhaps the disk is full") as file, whole(tmp_path / "a.pt"):
        raise RuntimeError(said)
    assert file.value.filename == str(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "error",
    [RuntimeError("the sides differ"), FileNotFoundError(errno.ENOENT, "No such file", "source")],
)
def test_other_errors_stay_as_they_are(tmp_path, error):
    with pytest.raises(type(error)) as raised, whole(tmp_path / "a.pt"):
        raise error
    assert raised.value is error


@pytest.mark.parametrize("value", [{"é": ["\U0001f600", 1]}, {"é": "r\udcff"}])
def test_json_holds_any_path(value):
    """Python has a surrogate for a byte of a path that is no UTF-8."""
    text = json_text(value, indent=1)
    assert json_of(text.encode("utf-8")) == value
    assert ("é" in text) == ("r" not in text)


def test_what_two_processes_add_to_a_folder_is_there(tmp_path):
    """The second has begun before the first has ended."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    with folders.merged(folder) as first:
        code = (
            "import sys; from fairseq_peft import folders\n"
            "with folders.merged(sys.argv[1]) as new: (new / 'b').write_text('b')"
        )
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=ROOT)
        (first / "a").write_text("a")
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "mine"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_folder_that_cannot_move_gets_its_files_all_the_same(tmp_path, monkeypatch, fails):
    """The process stands in it."""
    (tmp_path / "mine").write_text("mine")
    inode = tmp_path.stat().st_ino
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(KeyError), folders.merged(".") as new:
        (new / "a").write_text("a")
        if fails:
            raise KeyError
    assert tmp_path.stat().st_ino == inode
    assert {path.name for path in tmp_path.iterdir()} == {"mine"} | (set() if fails else {"a"})
