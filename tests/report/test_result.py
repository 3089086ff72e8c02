"""run.json + metrics.jsonl -> result.json."""

import json
import tracemalloc

import pytest

from fairseq_peft.cli import main
from fairseq_peft.errors import InputError
from fairseq_peft.report.result import summarise, write_atomic


def rewrite(folder, lines):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_numbers(make_run):
    result = summarise(make_run(epochs=[(300, 1500), (320, 1600), (310, 1700)]))
    assert result["num_epochs"] == 3
    assert (result["best_epoch"], result["valid_accuracy"]) == (2, 0.8)
    assert result["test_accuracy"] == 0.8  # of epoch 2, though epoch 3 has more
    assert (result["best_test_epoch"], result["best_test_accuracy"]) == (3, 0.85)
    assert result["train_seconds"] == 120.0
    assert result["seconds"] == 132.0  # and 2 s for each of 6 evaluations
    assert result["tokens_per_second"] == pytest.approx(3 * 228000 / 120)
    assert result["peak_memory_bytes"] == 1000
    assert [point["valid_accuracy"] for point in result["curve"]] == [0.75, 0.8, 0.775]
    assert result["data"] == "books"


def test_tie_takes_the_latest_and_ignores_test(make_run):
    """As fairseq's checkpoint_best.pt: a later equal overwrites it."""
    result = summarise(make_run(epochs=[(300, 1500), (320, 1900), (320, 1600), (310, 1900)]))
    assert (result["best_epoch"], result["test_accuracy"]) == (3, 0.8)
    assert result["best_test_epoch"] == 2


def test_repeated_epoch_counts_once_with_its_last_line(make_run):
    folder = make_run()
    rewrite(
        folder,
        [
            make_run.epoch_line(1, 300, 1500),
            make_run.epoch_line(2, 400, 2000, memory=9000),
            make_run.epoch_line(2, 310, 1600),
        ],
    )
    result = summarise(folder)
    assert (result["num_epochs"], result["best_epoch"], result["test_accuracy"]) == (2, 2, 0.8)
    assert result["seconds"] == 2 * 44.0
    assert result["best_test_accuracy"] == 0.8


def test_without_a_test_split(make_run):
    result = summarise(make_run(epochs=[(300, None)]))
    assert result["valid_accuracy"] == 0.75
    for key in ("test_accuracy", "best_test_accuracy", "best_test_epoch", "test_mcc"):
        assert result[key] is None


def test_diverged_loss_becomes_null(make_run):
    folder = make_run(finish=False)
    rewrite(folder, [make_run.epoch_line(1, 200, 1000, loss=float("nan"))])
    assert main(["result", str(folder)]) == 0
    assert json.loads((folder / "result.json").read_text())["curve"][0]["train_loss"] is None


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("{", "metrics.jsonl:1 is not JSON"),
        ("[]", "metrics.jsonl:1 has epoch None"),
        ('{"epoch": 0}', "expected 1, 2"),
        ('{"epoch": 1}', "does not have the fields"),
        ("", "0 epochs done, 1 expected"),
    ],
)
def test_broken_metrics(make_run, broken, said):
    folder = make_run()
    (folder / "metrics.jsonl").write_text(broken)
    with pytest.raises(InputError, match=said):
        summarise(folder)


@pytest.mark.parametrize("key", ["accuracy", "seconds", "loss"])
@pytest.mark.parametrize("value", ["abc", 10**400, [1]])
def test_a_number_that_is_none_is_one_sentence(make_run, key, value):
    folder = make_run()
    line = make_run.epoch_line(1, 300, 1500)
    for part in (line["train"], *line["subsets"].values()):
        part[key] = value
    rewrite(folder, [line])
    with pytest.raises(InputError, match=r"(metrics\.jsonl|result\.json)'"):
        summarise(folder)


def test_gap_between_epochs(make_run):
    folder = make_run()
    rewrite(folder, [make_run.epoch_line(1, 300, 1500), make_run.epoch_line(3, 300, 1500)])
    with pytest.raises(InputError, match="first missing one is 2"):
        summarise(folder)


def test_a_line_of_an_epoch_far_away_takes_no_memory(make_run):
    """As a damaged line may name any; fuzzing found that all epochs before it were listed."""
    folder = make_run()
    rewrite(folder, [make_run.epoch_line(epoch, 300, 1500) for epoch in (1, 2, 1_000_000)])
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="first missing one is 3"):
            summarise(folder)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("validated", [[1], "x", {"every_epochs": 0}, {"every_epochs": "2"}])
def test_a_run_that_does_not_say_when_it_was_validated(make_run, validated):
    folder = make_run()
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "validated": validated}))
    with pytest.raises(InputError, match="run.json' has no count of epochs in validated"):
        summarise(folder)


def test_dropped_rows_are_refused(make_run):
    folder = make_run()
    line = make_run.epoch_line(1, 300, 1500)
    line["subsets"]["test"]["num_examples"] = 1993
    rewrite(folder, [line])
    with pytest.raises(InputError, match="1500 right of 1993 rows of 'test'; the data has 2000"):
        summarise(folder)


def test_no_valid_subset(make_run):
    folder = make_run()
    line = make_run.epoch_line(1, 300, 1500)
    line["subsets"]["valid1"] = line["subsets"].pop("valid")
    rewrite(folder, [line])
    with pytest.raises(InputError, match="has no 'valid'"):
        summarise(folder)


@pytest.mark.parametrize("missing", ["run.json", "metrics.jsonl"])
def test_missing_file(make_run, missing):
    folder = make_run()
    (folder / missing).unlink()
    with pytest.raises(InputError, match=f"cannot read '.*{missing}'"):
        summarise(folder)


def test_command_requires_epochs(make_run, capsys):
    folder = make_run(finish=False)
    assert main(["result", str(folder), "--require-epochs", "3"]) == 1
    error = capsys.readouterr().err
    assert "2 epochs done, 3 expected" in error and "Traceback" not in error
    assert not (folder / "result.json").exists()
    assert main(["result", str(folder), "--require-epochs", "2"]) == 0
    assert json.loads((folder / "result.json").read_text())["test_accuracy"] == 0.8


def test_write_is_whole_or_not_at_all(tmp_path):
    write_atomic(tmp_path / "a", "one")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(tmp_path / "a", "two\udc80")
    assert (tmp_path / "a").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_place_that_takes_no_file_is_one_sentence(make_run, capsys, monkeypatch):
    from fairseq_peft.report import tensorboard

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tensorboard, "write_hparams", refuse)
    assert main(["result", str(make_run(finish=False))]) == 1
    error = capsys.readouterr().err
    assert "Permission denied. Give rights there" in error and "Traceback" not in error
