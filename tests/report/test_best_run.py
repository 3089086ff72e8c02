"""``fairseq-peft best-run``: valid chooses, test has no say, the first of equals wins."""

import json

import pytest

from fairseq_peft.cli import main
from fairseq_peft.report import runs
from fairseq_peft.report.result import in_words


@pytest.fixture
def best(make_run, capsys):
    """``best((valid, test), ...)``: the number of the run that is printed, of runs with as many
    right rows."""

    def choose(*counts):
        folders = [
            str(make_run(method=f"m{number}", epochs=[pair])) for number, pair in enumerate(counts)
        ]
        assert main(["best-run", *folders]) == 0
        return folders.index(capsys.readouterr().out.strip())

    return choose


@pytest.mark.parametrize("counts", [[(300, 1900), (301, 100)], [(301, 100), (300, 1900)]])
def test_valid_chooses_and_test_has_no_say(best, counts):
    assert counts[best(*counts)] == (301, 100)


def test_the_first_of_equals_whatever_test_says(best):
    assert best((310, 1000), (320, 1000), (320, 1900), (315, 2000)) == 1


def test_what_has_no_score_in_common_is_not_compared(make_run, capsys):
    """Numbers have no accuracy: a correlation and an error say nothing of each other."""
    folders = [make_run(method=name) for name in ("one", "two")]
    for folder, metric in zip(folders, ("pearson", "mse")):
        path = folder / "result.json"
        result = json.loads(path.read_text())
        result.update(kind="number", valid_accuracy=None, test_accuracy=None, best_value=0.25)
        result["chosen_by"] = {"metric": metric, "subset": "valid"}
        path.write_text(json.dumps(result))
    assert runs.best(folders[:1] * 2) == 0
    assert main(["best-run", *map(str, folders)]) == 1
    assert "have no score on valid in common" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("metric", "kind", "text"),
    [
        ("accuracy", "classes", "test accuracy 50.00 % at epoch 2 of 3, chosen on valid (75.00 %)"),
        ("macro_f1", "classes", "test macro_f1 40.00 % at epoch 2 of 3, chosen on valid (75.00 %)"),
        ("mcc", "classes", "test mcc 0.300 at epoch 2 of 3, chosen on valid (0.750)"),
        ("loss", "classes", "test accuracy 50.00 % at epoch 2 of 3, chosen on valid (loss 0.750)"),
        ("f1_bad", "labels", "test micro_f1 60.00 % at epoch 2 of 3, chosen on valid (f1_bad 75."),
        ("mse", "number", "test mse 0.200 at epoch 2 of 3, chosen on valid (0.750)"),
    ],
)
def test_a_sentence_says_what_chose(metric, kind, text):
    result = {"kind": kind, "chosen_by": {"metric": metric}, "best_epoch": 2, "num_epochs": 3}
    result.update(best_value=0.75, test_accuracy=0.5, test_macro_f1=0.4, test_mcc=0.3)
    result.update(test_micro_f1=0.6, test_mse=0.2)
    assert in_words(result).startswith(text)
