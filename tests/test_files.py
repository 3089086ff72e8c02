"""``files.whole``: the new content or the old one, never a part, and nothing left beside it."""

from __future__ import annotations

import os

import pytest

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


@pytest.mark.parametrize("value", [{"é": ["\U0001f600", 1]}, {"é": "r\udcff"}])
def test_json_holds_any_path(value):
    """Python has a surrogate for a byte of a path that is no UTF-8."""
    text = json_text(value, indent=1)
    assert json_of(text.encode("utf-8")) == value
    assert ("é" in text) == ("r" not in text)
