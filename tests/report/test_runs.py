"""Finding runs, and refusing broken ones with a sentence."""

import json

import pytest

from fairseq_peft.cli import main
from fairseq_peft.errors import InputError
from fairseq_peft.report.rows import build_rows
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


@pytest.mark.parametrize("content", ["{", '{"hyperparameters": {"max_epoch": "x"}}'])
def test_broken_unfinished_run_does_not_stop_the_report(make_run, content):
    make_run(seed=1)
    (make_run(seed=2, finish=False) / "run.json").write_text(content)
    _, (unfinished,) = find_runs(make_run.root)
    assert "broken" in unfinished.reason


def test_nothing_there(tmp_path, make_run):
    with pytest.raises(InputError, match="is not a folder"):
        find_runs(tmp_path / "nowhere")
    make_run(finish=False)
    with pytest.raises(InputError, match=r"no result.json .* counts \(1 unfinished runs\)"):
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
        ("curve", [{"epoch": 1, "train_loss": 10**400}], "in 'curve'"),
        ("curve", [{"epoch": 1, "valid_value": "x"}], "in 'curve'"),
        ("kind", -1, "'kind' is -1, expected one of classes, labels"),
        ("kind", ["number"], "'kind' is"),
        ("test_pearson", "x", "'test_pearson' is 'x', expected a number"),
        ("test_mse", float("nan"), "'test_mse' is nan, expected a finite number"),
        ("test_mse", 1e300, "'test_mse' is 1e.300, expected a number below"),
        ("trainable_parameters", 10**400, "'trainable_parameters' is 1000.*, expected a number be"),
        ("data", None, "'data' is None"),
    ],
)
def test_wrong_field(make_run, key, value, said):
    path = make_run() / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(InputError, match=said):
        find_runs(make_run.root)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rows", {"test": "2000"}, "'rows' has '2000' for test"),
        ("rows", {"test": True}, "'rows' has True"),
        ("hyperparameters", {"lr": "fast"}, "'lr' is 'fast'"),
        ("hyperparameters", {"lr": float("inf")}, "'lr' is inf"),
        ("hyperparameters", {"lr": 10**400}, "'lr' is 1000"),
        ("rows", {"test": 10**400}, "'rows' has 1000"),
        ("best_value", 10**400, "'best_value' is 1000"),
        ("labels", "01", "'labels' is '01'"),
        ("chosen_by", {"metric": ["mcc"], "subset": "valid"}, "'chosen_by' is"),
        ("chosen_by", "mcc", "'chosen_by' is 'mcc'"),
        ("best_value", "0.5", "'best_value' is '0.5'"),
        ("method", "lo\nra", "expected a name on one line"),
        ("data", "\ud800", "expected a name on one line"),
    ],
)
def test_a_wrong_field_that_only_tables_read(make_run, key, value, said):
    path = make_run() / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(InputError, match=said):
        find_runs(make_run.root)


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b'{"seed": ' + b"1" * 5000 + b"}"])
def test_a_broken_result_costs_its_row(make_run, capsys, content):
    make_run("full", 1)
    folder = make_run("lora", 1)
    (folder / "result.json").write_bytes(content)
    assert main(["report", str(make_run.root)]) == 0
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if line.startswith("pretrained  full")]
    assert "pretrained  lora" not in text
    said = " ".join(text.split())
    assert f"Left out of the tables: {folder} (" in said and "result.json' is not JSON" in said


@pytest.mark.parametrize("name", ["copy", "a-copy", "../../copy"])
def test_a_copied_run_does_not_count(make_run, name):
    """Whatever the order of the paths, the one at its place in the tree does."""
    folder = make_run(seed=1)
    make_run(seed=2)
    copy = folder.parent / name
    copy.mkdir(parents=True)
    (copy / "result.json").write_bytes((folder / "result.json").read_bytes())
    finished, (left_out,) = find_runs(make_run.root)
    assert [run.path.name for run in finished] == ["seed1", "seed2"]
    assert left_out.path.samefile(copy) and left_out.finished
    assert f"as '{folder}' is, which counts: a copy of it" in left_out.reason


def test_methods_may_lie_on_another_disk(make_run, tmp_path):
    folder = make_run(seed=1).parent
    folder.rename(tmp_path / "disk")
    folder.symlink_to(tmp_path / "disk")
    finished, left_out = find_runs(make_run.root)
    assert [run.path for run in finished] == [folder / "seed1"]
    assert not left_out


def by_hand(make_run, name, **run):
    """The folder runs/NAME of a run that was started without a script."""
    folder = make_run.root / name
    make_run(**run).rename(folder)
    return folder


def test_what_a_run_is_its_files_say(make_run):
    by_hand(make_run, "mine", method="lora", seed=1)
    by_hand(make_run, "other", method="lora", seed=2)
    by_hand(make_run, "scratch", method="lora", seed=1, init="scratch")
    runs, left_out = find_runs(make_run.root)
    rows = {(row["init"], row["method"]): row["seeds"] for row in build_rows(runs)}
    assert rows == {("pretrained", "lora"): [1, 2], ("scratch", "lora"): [1]}
    assert {one.reason for one in left_out} == set()


def test_two_runs_by_hand_that_differ_in_a_knob(make_run):
    first = by_hand(make_run, "a", method="lora")
    by_hand(make_run, "b", method="lora", method_config={"rank": 64})
    _, (second,) = find_runs(make_run.root)
    assert f"as '{first}' is, which counts. They differ (method_config)" in second.reason
    assert 'give it another "method" in' in second.reason
