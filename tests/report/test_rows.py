"""Statistics against numbers worked out by hand, and the rows made of them."""

import json

import pytest

from fairseq_peft.report.rows import build_rows
from fairseq_peft.report.runs import find_runs
from fairseq_peft.report.stats import (
    mean,
    paired_difference,
    sample_sd,
    sampling_error,
    t_quantile,
)

MACRO_F1 = {"metric": "macro_f1", "subset": "dev", "maximize": True}


def rows_of(make_run):
    runs, _ = find_runs(make_run.root)
    return {(row["data"], row["init"], row["method"]): row for row in build_rows(runs)}


def test_mean_and_sd():
    assert mean([1.0, None, 3.0]) == 2.0
    assert mean([None]) is None
    # deviations -1, 0, 1: sum of squares 2, over n - 1 = 2
    assert sample_sd([1.0, 2.0, 3.0]) == 1.0
    assert sample_sd([1.0]) is None


def test_t_quantile_is_the_printed_table():
    for degrees, value in {1: 12.706, 2: 4.303, 4: 2.776, 30: 2.042}.items():
        assert t_quantile(degrees) == pytest.approx(value, abs=5e-4)


def test_paired_difference_by_hand():
    # differences .01, .02, .03: mean .02, sd .01, half = 4.30265 * .01 / sqrt(3) = .0248414
    difference = paired_difference({1: 0.81, 2: 0.83, 3: 0.85}, {3: 0.82, 2: 0.81, 1: 0.80, 9: 0.1})
    assert difference.mean == pytest.approx(0.02)
    assert difference.low == pytest.approx(-0.0048414, abs=1e-6)
    assert difference.high == pytest.approx(0.0448414, abs=1e-6)
    assert difference.num_pairs == 3


def test_paired_difference_with_few_pairs():
    assert paired_difference({1: 0.8}, {2: 0.8}) is None
    one = paired_difference({1: 0.75, 2: 0.9}, {1: 0.5})
    assert (one.mean, one.low, one.high, one.num_pairs) == (0.25, None, None, 1)


def test_sampling_error():
    # in the middle that of the normal distribution, 1.96 * sqrt(.25 / n)
    assert sampling_error(0.5, 10000) == pytest.approx(0.0098, rel=1e-3)
    # at the ends z^2 / (n + z^2), where the normal distribution leaves nothing open
    for accuracy in (0.0, 1.0):
        assert sampling_error(accuracy, 100) == pytest.approx(0.036995, rel=1e-4)


def test_scores_and_the_metric_that_chose(make_run):
    for seed, (macro_f1, mcc) in {1: (0.7, 0.4), 2: (0.8, 0.6)}.items():
        path = make_run("lora", seed) / "result.json"
        result = json.loads(path.read_text())
        result.update(
            test_macro_f1=macro_f1, test_mcc=mcc, chosen_by=MACRO_F1, best_value=macro_f1 + 0.1
        )
        path.write_text(json.dumps(result))
    make_run("full", 1)
    rows = rows_of(make_run)
    row = rows["books", "pretrained", "lora"]
    assert (row["test_macro_f1_mean"], row["test_mcc_mean"]) == pytest.approx((0.75, 0.5))
    assert row["test_macro_f1_sd"] == pytest.approx(0.1 / 2**0.5)
    assert row["test_mcc_sd"] == pytest.approx(0.2 / 2**0.5)
    assert (row["metric"], row["best_value_mean"]) == ("macro_f1 on dev", pytest.approx(0.85))
    full = rows["books", "pretrained", "full"]  # as results of before
    assert (full["metric"], full["best_value_mean"]) == ("accuracy", full["valid_accuracy_mean"])


def test_runs_whose_checkpoints_another_metric_chose_are_noted(make_run):
    make_run("lora", 1)
    make_run("lora", 2, chosen_by={**MACRO_F1, "subset": "valid"})
    row = rows_of(make_run)["books", "pretrained", "lora"]
    assert row["metric"] is None and "its runs differ in chosen_by" in row["notes"][0]


def test_other_rows_are_noted_unless_the_name_says_so(make_run):
    for seed in (1, 2, 3):
        make_run("full", seed)
    few = {"train": 64, "valid": 400, "test": 2000}
    make_run("lora-64", rows=few)
    make_run("prompt", rows=few)
    make_run("ia3-64", rows={**few, "dev": 40})
    rows = rows_of(make_run)
    noted = {
        name: "not those of the other" in str(row["notes"]) for (*_, name), row in rows.items()
    }
    assert noted == {"full": False, "lora-64": False, "prompt": True, "ia3-64": True}


def test_row(make_run):
    for seed, (full, lora) in enumerate([(1600, 1620), (1620, 1660), (1640, 1700)], start=1):
        make_run("full", seed, [(300, full)])
        make_run("lora", seed, [(300, lora), (200, 1800)])
    row = rows_of(make_run)["books", "pretrained", "lora"]
    assert (row["seeds"], row["num_seeds"]) == ([1, 2, 3], 3)
    assert row["test_accuracy_mean"] == pytest.approx(0.83)
    assert row["test_accuracy_sd"] == pytest.approx(0.02)
    half = 4.30265 * 0.02 / 3**0.5
    interval = (row["test_accuracy_low"], row["test_accuracy_high"])
    assert interval == pytest.approx((0.83 - half, 0.83 + half))
    assert (row["test_accuracy_worst"], row["test_accuracy_best"]) == (0.81, 0.85)
    assert row["best_test_accuracy_mean"] == pytest.approx(0.9)
    assert row["difference_to_full_mean"] == pytest.approx(0.02)
    assert row["difference_to_full_low"] == pytest.approx(-0.0048414, abs=1e-6)
    assert row["difference_to_full_high"] == pytest.approx(0.0448414, abs=1e-6)
    assert row["trainable_parameters"] == 329218
    assert row["seconds_mean"] == 88.0
    assert row["learning_rate"] == 0.001
    assert row["notes"] == []


def test_full_is_not_compared_with_itself_nor_across_inits(make_run):
    for seed in (1, 2):
        make_run("full", seed, init="pretrained")
        make_run("lora", seed, init="scratch")
        make_run("lora", seed, init="pretrained", data="music")
    for row in rows_of(make_run).values():
        assert row["difference_to_full_mean"] is None
        assert row["difference_to_full_low"] is None


def test_one_seed_has_no_sd_and_no_interval(make_run):
    make_run("full", 1, [(300, 1600)])
    make_run("lora", 1, [(300, 1500)])
    row = rows_of(make_run)["books", "pretrained", "lora"]
    assert row["test_accuracy_sd"] is None
    assert row["difference_to_full_mean"] == pytest.approx(-0.05)
    assert row["difference_to_full_low"] is row["difference_to_full_high"] is None


def test_unequal_seeds_pair_what_is_common_and_say_so(make_run):
    for seed, correct in {1: 1600, 2: 1620}.items():
        make_run("full", seed, [(300, correct)])
    for seed, correct in {2: 1640, 3: 1000}.items():
        make_run("lora", seed, [(300, correct)])
    row = rows_of(make_run)["books", "pretrained", "lora"]
    assert row["difference_to_full_mean"] == pytest.approx(0.01)
    assert row["difference_to_full_pairs"] == 1
    assert "only 1 of its 2 seeds" in row["notes"][0]


def test_runs_that_were_not_run_alike_are_noted(make_run):
    make_run("lora", 1, lr=0.001)
    make_run("lora", 2, lr=0.003, trainable_parameters=5)
    make_run("lora", 3, [(300, 1500)], lr=0.001)
    row = rows_of(make_run)["books", "pretrained", "lora"]
    assert row["learning_rate"] is None and row["trainable_parameters"] is None
    notes = "\n".join(row["notes"])
    assert "differ in learning rate: 0.001 (seed 1, 3); 0.003 (seed 2)" in notes
    assert "differ in num_epochs: 2 (seed 1, 2); 1 (seed 3)" in notes
    assert "differ in trainable_parameters: 329,218 (seed 1, 3); 5 (seed 2)" in notes


def test_other_data_under_the_same_name_is_noted(make_run):
    make_run("full", 1)
    make_run("full", 2)
    make_run("lora", 1, rows={"train": 1557, "valid": 400, "test": 2000})
    notes = rows_of(make_run)["books", "pretrained", "lora"]["notes"]
    assert any("train 1557" in note and "train 1600" in note for note in notes)


def test_order_of_rows(make_run):
    for init, method in [
        ("pretrained", "head_only"),
        ("pretrained", "full"),
        ("scratch", "full"),
        ("baseline", "tfidf"),
        ("pretrained", "lora"),
    ]:
        make_run(method, init=init)
    assert [key[1:] for key in rows_of(make_run)] == [
        ("baseline", "tfidf"),
        ("scratch", "full"),
        ("pretrained", "full"),
        ("pretrained", "lora"),
        ("pretrained", "head_only"),
    ]
