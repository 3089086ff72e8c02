"""Runs with predictions -> what may be concluded, in every form of the report."""

import csv
import json

import numpy as np
import pytest

from fairseq_peft.cli import main
from fairseq_peft.report import comparisons
from fairseq_peft.report.rows import build_rows
from fairseq_peft.report.runs import find_runs
from fairseq_peft.runs import predictions

NUM_ROWS = 2000
TARGET = np.random.default_rng(0).integers(0, 2, NUM_ROWS)


@pytest.fixture
def add(make_run):
    """add(method, seed, wrong rows, ...) -> the folder of a run that predicted all others right."""

    def make(method, seed, wrong, order=None, target=TARGET, **more):
        right = NUM_ROWS - len(wrong)
        folder = make_run(method, seed, [(300, 0), (320, right), (310, 1)], **more)
        predicted = target.copy()
        predicted[list(wrong)] ^= 1
        found = predictions.Predictions(epoch=2)
        rows = slice(None) if order is None else order
        found.add("test", target[rows], predicted[rows])
        predictions.write(folder / predictions.NAME, found)
        return folder

    make.root = make_run.root
    return make


def rows_of(root):
    return {f"{row['init']}/{row['method']}": row for row in build_rows(find_runs(root)[0])}


def wrong_rows(seed, count):
    return np.random.default_rng(seed).permutation(NUM_ROWS)[:count]


def test_what_differs_is_told_and_what_does_not_is_not(add):
    for seed in (1, 2, 3):
        common = wrong_rows(0, 300)  # rows that nobody gets right
        add("full", seed, np.union1d(common, wrong_rows(seed, 250)))
        add("lora", seed, np.union1d(common, wrong_rows(10 + seed, 250)))
        add("adapter", seed, np.union1d(common, wrong_rows(20 + seed, 80)))
    rows = rows_of(add.root)
    lora, adapter, full = (rows[f"pretrained/{name}"] for name in ("lora", "adapter", "full"))
    assert full["paired_with"] is full["conclusion"] is None
    assert "lora and full cannot be told apart with 3 seeds and 2,000 rows" in lora["conclusion"]
    assert lora["paired_difference_low"] < 0 < lora["paired_difference_high"]
    low, high = (100 * adapter[f"paired_difference_{end}"] for end in ("low", "high"))
    assert 4 < low < 100 * adapter["paired_difference_mean"] < high < 10
    assert adapter["conclusion"] == (
        f"adapter is better than full by {low:.1f} to {high:.1f} points (3 seeds and 2,000 rows)"
    )
    assert adapter["paired_difference_mean"] == pytest.approx(adapter["difference_to_full_mean"])
    # Two comparisons with one method: the smaller p counts twice.
    assert adapter["mcnemar_p_holm"] == 2 * adapter["mcnemar_p"] < 1e-6
    assert lora["mcnemar_p_holm"] == lora["mcnemar_p"] > 0.05


def test_the_counts_are_mcnemars(add):
    add("full", 1, range(0, 10))
    add("lora", 1, range(8, 12))  # wrong: 0 to 7 full alone, 8 and 9 both, 10 and 11 lora alone
    lora = rows_of(add.root)["pretrained/lora"]
    assert (lora["paired_wins"], lora["paired_losses"]) == (8, 2)
    assert lora["mcnemar_p"] == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert (lora["paired_seeds"], lora["paired_rows"]) == (1, 2000)


def test_one_seed_speaks_of_runs_alone(add):
    add("full", 1, range(100))
    add("lora", 1, range(200))
    conclusion = rows_of(add.root)["pretrained/lora"]["conclusion"]
    assert conclusion.startswith("lora is worse than full by 4.")
    assert "(1 seed and 2,000 rows)" in conclusion
    assert conclusion.endswith("; one seed speaks of these runs, not of the methods")


def test_correction_can_undo_a_difference(add):
    """14 rows against 3 are p = 0.013: a difference, but not as one of five comparisons."""
    add("full", 1, range(100))
    add("lora", 1, range(14, 103))
    assert "is better than full" in rows_of(add.root)["pretrained/lora"]["conclusion"]
    for method in ("adapter", "prompt", "prefix", "ia3"):
        add(method, 1, range(100))
    row = rows_of(add.root)["pretrained/lora"]
    assert row["mcnemar_p_holm"] == pytest.approx(5 * row["mcnemar_p"])
    assert "cannot be told apart" in row["conclusion"]
    assert "p is 0.06 after correction for 5 comparisons" in row["conclusion"]


def test_seeds_that_vary_more_than_the_difference(add):
    add("full", 1, range(400, 500))
    add("full", 2, range(400, 500))
    add("lora", 1, [])
    add("lora", 2, range(400, 505))
    row = rows_of(add.root)["pretrained/lora"]
    assert row["mcnemar_p_holm"] < 0.05
    assert "cannot be told apart" in row["conclusion"]
    assert "the seeds vary as much" in row["conclusion"]


def test_few_examples_stand_for_themselves(add):
    """A row on 64 drawn rows is compared with full fine-tuning on 64, and corrected with its own
    kind alone: Holm's family of those on all rows is as if it was not there."""
    few = {"train": 64, "valid": 400, "test": NUM_ROWS}
    add("full", 1, range(100))
    add("lora", 1, range(14, 103))
    tfidf = {"train": 1580, "valid": 400, "test": NUM_ROWS}  # 20 duplicates fewer are as many
    add("tfidf", 1, range(300), init="baseline", rows=tfidf)
    alone = rows_of(add.root)
    for method in ("full-64", "lora-64", "ia3_64"):
        add(method, 1, wrong_rows(len(method), 700), rows=few)
    add("full-64", 1, range(800), init="scratch", rows=few)
    add("prompt", 1, range(50), rows={**few, "train": 16})
    rows = rows_of(add.root)
    for name in ("pretrained/lora", "baseline/tfidf"):
        assert rows[name]["paired_with"] == "pretrained/full"
        assert rows[name]["mcnemar_p_holm"] == alone[name]["mcnemar_p_holm"]
        assert rows[name]["difference_to_full_mean"] == alone[name]["difference_to_full_mean"]
    assert rows["pretrained/lora"]["mcnemar_p_holm"] == rows["pretrained/lora"]["mcnemar_p"]
    for name in ("pretrained/lora-64", "pretrained/ia3_64", "scratch/full-64"):
        assert rows[name]["paired_with"] == "pretrained/full-64"
    assert rows["pretrained/full-64"]["paired_with"] is None
    expected = rows["pretrained/lora-64"]["test_accuracy_mean"]
    expected -= rows["pretrained/full-64"]["test_accuracy_mean"]
    assert rows["pretrained/lora-64"]["difference_to_full_mean"] == pytest.approx(expected)
    prompt = rows["pretrained/prompt"]
    assert prompt["paired_with"] is None and prompt["difference_to_full_mean"] is None
    assert any("trained on 16 rows, pretrained/full on 1,600" in note for note in prompt["notes"])


def test_another_method_may_be_the_reference(add, capsys):
    """For those who never train all weights, and for the order among methods."""
    add("lora", 1, range(100))
    add("adapter", 1, range(200))
    add("lora", 1, range(400), init="scratch")
    command = ["report", str(add.root), "--compare-with"]
    assert main([*command, "lora"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "pretrained: adapter is worse than lora by" in text
    rows = build_rows(find_runs(add.root)[0], "lora")
    found = {f"{row['init']}/{row['method']}": row for row in rows}
    assert "adapter is worse than lora by" in found["pretrained/adapter"]["conclusion"]
    assert "scratch/lora is worse than pretrained/lora" in found["scratch/lora"]["conclusion"]
    assert found["pretrained/lora"]["paired_with"] is None
    assert rows_of(add.root)["pretrained/adapter"]["paired_with"] is None  # there is no full
    assert main(command[:2]) == 0
    assert "--compare-with names another method" in " ".join(capsys.readouterr().out.split())
    assert main([*command, "lohra"]) == 1
    assert "Methods here: adapter, lora." in capsys.readouterr().err


def test_scratch_and_baselines_stand_against_full(add):
    for seed in (1, 2):
        add("full", seed, wrong_rows(seed, 200))
        add("full", seed, wrong_rows(seed, 500), init="scratch")
        add("lora", seed, wrong_rows(seed, 600), init="scratch")
    baseline = add("tfidf", 1, wrong_rows(9, 400), init="baseline")
    rows = rows_of(add.root)
    assert rows["scratch/lora"]["paired_with"] == "scratch/full"
    assert rows["scratch/full"]["paired_with"] == "pretrained/full"
    assert "scratch/full is worse than pretrained/full by" in rows["scratch/full"]["conclusion"]
    tfidf = rows["baseline/tfidf"]
    # It draws nothing, so its one run stands against both seeds.
    assert (tfidf["paired_with"], tfidf["paired_seeds"]) == ("pretrained/full", 2)
    assert tfidf["paired_difference_mean"] == pytest.approx(-0.1)
    assert (baseline / predictions.NAME).is_file()


def test_the_order_of_rows_does_not_matter(add, tmp_path):
    orders = {}
    for name, order in (("a", None), ("b", np.random.default_rng(5).permutation(NUM_ROWS))):
        for seed in (1, 2):
            add("full", seed, wrong_rows(seed, 200), order, data=name)
            add("lora", seed, wrong_rows(7 + seed, 150), order, data=name)
        orders[name] = {row["method"]: row for row in build_rows(find_runs(add.root / name)[0])}
    for field in comparisons.FIELDS:
        assert orders["a"]["lora"][field] == orders["b"]["lora"][field] is not None


def test_a_broken_file_costs_its_row_with_a_sentence(add, capsys):
    add("full", 1, range(100))
    add("lora", 1, range(50))
    add("adapter", 1, range(150))
    path = add.root / "books/pretrained/lora/seed1" / predictions.NAME
    path.write_bytes(path.read_bytes()[:-30])
    assert main(["report", str(add.root)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Warning: books/pretrained/lora: it is not compared row by row" in text
    assert "is not the file of predictions that a run writes" in text
    rows = rows_of(add.root)
    assert rows["pretrained/lora"]["conclusion"] is None
    assert rows["pretrained/adapter"]["conclusion"] is not None


def change(path, **more):
    found = predictions.read(path)
    for key, value in more.items():
        setattr(found, key, value)
    predictions.write(path, found)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"epoch": 1}, "right after epoch 1, result.json 1950 after epoch 2"),
        ({"predicted": {"test": TARGET}}, "has 2000 of 2000 rows right"),
        ({"target": {"valid": TARGET}, "predicted": {"valid": TARGET}}, "no classes of the test"),
        ({"target": {"test": TARGET + 1}}, "no classes of the test"),
    ],
)
def test_predictions_of_another_run_are_refused(add, more, message):
    add("full", 1, range(100))
    change(add("lora", 1, range(50)) / predictions.NAME, **more)
    row = rows_of(add.root)["pretrained/lora"]
    assert row["conclusion"] is None
    assert any(message in note for note in row["notes"]), row["notes"]


def test_other_test_rows_are_not_compared(add):
    add("full", 1, range(100))
    add("lora", 1, range(100), target=TARGET[::-1].copy())
    row = rows_of(add.root)["pretrained/lora"]
    assert row["conclusion"] is None
    assert "the classes of its test rows are not those of pretrained/full" in row["notes"][0]


def test_seeds_without_predictions_are_left_out(add, make_run):
    add("full", 1, range(100))
    add("lora", 1, range(50))
    make_run("full", 2)
    make_run("lora", 2)
    row = rows_of(add.root)["pretrained/lora"]
    assert row["paired_seeds"] == 1
    assert any("compared by row with 1 of 2 seeds" in note for note in row["notes"])


def test_seeds_are_counted_against_what_a_row_is_compared_with(add, make_run):
    for method, seeds in (("full", (1,)), ("adapter", (1, 2, 3)), ("lora", (1, 2, 3))):
        for seed in seeds:
            add(method, seed, range(seed))
    rows = {row["method"]: row for row in build_rows(find_runs(add.root)[0], "lora")}
    assert rows["full"]["paired_seeds"] == 1
    assert rows["adapter"]["paired_seeds"] == 3
    assert not any("compared by row" in note for row in rows.values() for note in row["notes"])
    make_run("adapter", 4)
    make_run("lora", 4)
    rows = {row["method"]: row for row in build_rows(find_runs(add.root)[0], "lora")}
    (note,) = (note for note in rows["adapter"]["notes"] if "compared by row" in note)
    assert note.startswith("compared by row with 3 of 4 seeds")


def test_every_form_of_the_report_has_it(add, tmp_path, capsys):
    for seed in (1, 2):
        add("full", seed, wrong_rows(seed, 300))
        add("lora", seed, wrong_rows(seed, 100))
    assert main(["report", str(add.root), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 120
    (row,) = (r for r in json.loads((tmp_path / "out/report.json").read_text()) if r["conclusion"])
    assert set(comparisons.FIELDS) <= set(row)
    assert (tmp_path / "out/books-confusion.png").stat().st_size > 5_000
    with (tmp_path / "out/report.csv").open() as file:
        (line,) = (r for r in csv.DictReader(file) if r["conclusion"])
    assert line["conclusion"] == row["conclusion"]
    assert float(line["mcnemar_p"]) == row["mcnemar_p"]
    for text in (printed, (tmp_path / "out/report.md").read_text()):
        text = " ".join(text.split())
        assert "books: compared row by row" in text
        assert f"pretrained: {row['conclusion']}." in text
        assert "McNemar's exact test" in text and "10,000 paired bootstrap draws" in text


def test_without_predictions_the_report_says_so(make_run, capsys):
    make_run("full", 1)
    make_run("lora", 1)
    assert main(["report", str(make_run.root)]) == 0
    text = capsys.readouterr().out
    assert "no run has predictions.npz" in text and "compared row by row\n" not in text
    row = rows_of(make_run.root)["pretrained/lora"]
    assert not set(comparisons.FIELDS) & set(row)


def test_result_keeps_the_chosen_epoch(make_run):
    folder = make_run("lora", 1, [(300, 0), (320, 1990), (310, 0)], finish=False)
    for epoch in (1, 2, 3):
        found = predictions.Predictions(epoch)
        found.add("test", TARGET, TARGET)
        predictions.write(predictions.path_of(folder, 100 * epoch), found)
    for _ in range(2):  # again: there is nothing more to move
        assert main(["result", str(folder)]) == 0
        assert predictions.read(folder / predictions.NAME).epoch == 2
        assert not (folder / predictions.FOLDER).exists()


def test_a_file_is_small_and_whole(tmp_path):
    found = predictions.Predictions(3)
    found.add("test", TARGET, 1 - TARGET)
    predictions.write(tmp_path / "a.npz", found)
    assert (tmp_path / "a.npz").stat().st_size < 2000
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    found.add("wide", np.array([0, 300]), np.array([70000, 1]))
    predictions.write(tmp_path / "a.npz", found)
    again = predictions.read(tmp_path / "a.npz")
    assert again.predicted["wide"].tolist() == [70000, 1] and again.epoch == 3
    assert again.num_correct("test") == 0
