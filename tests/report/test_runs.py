"""Finding runs, and refusing broken ones with a sentence."""

import json

import pytest

from fairseq_peft.errors import InputError
from fairseq_peft.report.runs import find_runs


def test_finished_and_unfinished(make_run):
    make_run(seed=1)
    make_run(seed=2, finish=False)
    make_run(seed=3, finish=False, epochs=[(300, 1500)])
    make_run(seed=4, finish=False, epochs=[])
    (make_run.root / "books/pretrained/full/seed5").mkdir()
    (make_run.root / "books/notes").mkdir()
    finished, unfinished = find_runs(make_run.root)
    assert [run.result["seed"] for run in finished] == [1]
    reasons = {one.path.name: one.reason for one in unfinished}
    assert list(reasons) == ["seed2", "seed3", "seed4", "seed5"]
    assert "all 2 epochs done" in reasons["seed2"]
    assert reasons["seed3"] == "1 of 2 epochs"
    assert reasons["seed4"] == "0 of 2 epochs"
    assert "no run.json" in reasons["seed5"]


def test_broken_unfinished_run_does_not_stop_the_report(make_run):
    make_run(seed=1)
    (make_run(seed=2, finish=False) / "run.json").write_text("{")
    _, (unfinished,) = find_runs(make_run.root)
    assert "broken" in unfinished.reason


def test_nothing_there(tmp_path, make_run):
    with pytest.raises(InputError, match="is not a folder"):
        find_runs(tmp_path / "nowhere")
    make_run(finish=False)
    with pytest.raises(InputError, match=r"no result.json .* \(1 unfinished runs\)"):
        find_runs(make_run.root)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": 1}', b"\xff\xfe"])
def test_broken_result(make_run, content):
    (make_run() / "result.json").write_bytes(content)
    with pytest.raises(InputError, match="result.json"):
        find_runs(make_run.root)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("schema", 2, "schema 2, this version reads 1"),
        ("seed", "1", "'seed' is '1', expected int"),
        ("seed", True, "'seed' is True"),
        ("test_accuracy", 84.2, "expected a fraction"),
        ("valid_accuracy", None, "expected a number"),
        ("seconds", float("nan"), "finite"),
        ("curve", [{"epoch": 1}, 3], "in 'curve'"),
        ("data", None, "'data' is None"),
    ],
)
def test_wrong_field(make_run, key, value, said):
    path = make_run() / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(InputError, match=said):
        find_runs(make_run.root)


def test_two_results_for_one_seed(make_run):
    folder = make_run(seed=1)
    copy = folder.parent / "copy"
    copy.mkdir()
    (copy / "result.json").write_bytes((folder / "result.json").read_bytes())
    with pytest.raises(InputError, match="both books/pretrained/full/seed1"):
        find_runs(make_run.root)
