"""``fairseq-peft best-run``: valid chooses, test has no say, the first of equals wins."""

import pytest

from fairseq_peft.cli import main


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
