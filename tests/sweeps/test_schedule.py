"""Which runs a sweep has and in which order, without starting one; and what its cells may be."""

from __future__ import annotations

import pytest

from fairseq_peft.errors import InputError
from fairseq_peft.sweeps import cells
from fairseq_peft.sweeps.cells import Cell
from fairseq_peft.sweeps.schedule import Run, Schedule


def cell(label, *rates, start="pretrained"):
    return Cell(start, label, label, (), rates)


LORA, FULL = cell("lora", "1e-3", "1e-2"), cell("full", "1e-4")


def jobs(schedule):
    """All jobs that may start now, as text."""
    found = []
    while job := schedule.next():
        found.append([str(run).partition("/")[2] for run in job])
    return found


def test_grids_and_first_runs_come_first_and_seeds_when_the_rate_is_picked():
    schedule = Schedule([LORA, FULL], [7, 8])
    assert schedule.num_runs == 5
    assert jobs(schedule) == [
        ["lora seed 7 lr 1e-3"],
        ["lora seed 7 lr 1e-2"],
        ["full seed 7 lr 1e-4"],
        ["full seed 8 lr 1e-4"],
    ]
    for rate in LORA.rates:
        assert schedule.to_pick() == []
        schedule.ended(Run(LORA, 7, rate, grid=True), None)
    assert schedule.to_pick() == [LORA]
    schedule.picked(LORA, "1e-2")
    assert schedule.to_pick() == [] and jobs(schedule) == [["lora seed 8 lr 1e-2"]]


def test_members_are_of_one_cell_that_leaves_the_base():
    schedule = Schedule([LORA, FULL, cell("adapter", "1e-3")], [1, 2, 3], members=2)
    assert [len(job) for job in jobs(schedule)] == [2, 1, 1, 1, 2, 1]


def test_what_is_done_is_not_started():
    schedule = Schedule([FULL], [1, 2, 3], is_done=lambda run: run.seed != 2)
    assert (schedule.num_done, schedule.num_skipped) == (2, 2)
    assert jobs(schedule) == [["full seed 2 lr 1e-4"]]


def test_a_cell_whose_first_run_fails_is_left():
    schedule = Schedule([LORA, FULL], [1, 2, 3])
    (first,) = schedule.next()
    schedule.ended(first, "no")
    assert schedule.not_started == {LORA: 3}  # the other rate, two seeds
    assert jobs(schedule) == [[f"full seed {seed} lr 1e-4"] for seed in (1, 2, 3)]
    assert schedule.to_pick() == []


def test_a_cell_with_a_good_run_goes_on_and_a_grid_with_a_bad_one_picks_nothing():
    schedule = Schedule([LORA, FULL], [1, 2, 3])
    one, two = (schedule.next()[0] for _ in range(2))
    schedule.ended(one, None)
    schedule.ended(two, "no")
    assert schedule.not_started == {LORA: 2} and schedule.to_pick() == []
    schedule.ended(Run(FULL, 1, "1e-4"), None)
    schedule.ended(Run(FULL, 2, "1e-4"), "no")
    assert ["full seed 3 lr 1e-4"] in jobs(schedule)


def test_cells_have_methods_flags_and_rates():
    found = cells.read(
        ["scratch/lora", "pretrained/pissa", "pretrained/lora+prefix"],
        {"pissa": "--peft lora --lora-init 'pissa'"},
        {"PISSA": "1e-3, 2e-3", "SCRATCH": "5e-4"},
    )
    assert found[0].rates == ("5e-4",)
    assert found[1] == Cell(
        "pretrained", "pissa", "lora", ("--lora-init", "pissa"), ("1e-3", "2e-3")
    )
    assert found[2].method == "lora+prefix" and len(found[2].rates) > 1
    assert [cell.leaves_base for cell in found] == [False, True, True]


@pytest.mark.parametrize(
    ("names", "flags", "rates", "message"),
    [
        ([], {}, {}, "needs cells"),
        (["lora"], {}, {}, "no start/method"),
        (["scratch/lorra"], {}, {}, "'lorra' is unknown.*needs --cell-flags lorra= .FLAGS_LORRA"),
        (
            ["pretrained/lora"],
            {},
            {"lorra": "1e-3"},
            "--rates lorra= .LR_LORRA. would be ignored.*LR_LORA. meant",
        ),
        (
            ["pretrained/lora"],
            {"pissa": "--peft lora"},
            {},
            "--cell-flags pissa= .FLAGS_PISSA. would be ignored",
        ),
        (["scratch/lora"], {}, {"LORA": "1e-3"}, "LR_LORA. would be ignored"),
        (["pretrained/lora"], {}, {"LORA": "fast"}, "'fast' is no learning rate"),
        (["pretrained/lora"], {}, {"LORA": "-1"}, "'-1' is no learning rate"),
        (["pretrained/lora"], {}, {"LORA": "1e-3 1e-3"}, "names 1e-3 twice"),
        (["pretrained/lora"], {"LORA": "--x 'y"}, {}, "FLAGS_LORA. cannot be read"),
        (
            ["pretrained/lora"],
            {},
            {"lora": "1e-3", "LORA": "2e-3"},
            "--rates lora= .LR_LORA. was given twice: lora, LORA",
        ),
        (
            ["pretrained/lora+ia3"],
            {"lora+ia3": "--lora-rank 2", "lora,ia3": "--lora-rank 4"},
            {},
            "--cell-flags lora_ia3= .FLAGS_LORA_IA3. was given twice",
        ),
    ],
)
def test_what_cannot_be_a_cell_is_named(names, flags, rates, message):
    with pytest.raises(InputError, match=message):
        cells.read(names, flags, rates)


@pytest.mark.parametrize("variable, flag", [("LR", "--rates"), ("FLAGS", "--cell-flags")])
def test_what_the_command_line_names_twice_is_refused(variable, flag):
    """Nothing of what was said is lost without a word."""
    assert cells.named(["lora=1 2", "adapter=3"], variable) == {"LORA": "1 2", "ADAPTER": "3"}
    for given in (["lora=1", "lora=2"], ["lora=1", "LORA=1"]):
        with pytest.raises(InputError, match=rf"{flag} lora= \({variable}_LORA\) was given twice"):
            cells.named(given, variable)
    with pytest.raises(InputError, match="'1e-3': expected NAME=..."):
        cells.named(["1e-3"], variable)
