"""Pictures: there, not empty, the right curves in them, and none where there is nothing to draw."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from fairseq_peft.report import drawing, plots
from fairseq_peft.report.rows import build_rows
from fairseq_peft.report.runs import find_runs


@pytest.fixture
def make_baseline(make_run):
    def make(**changes):
        folder = make_run("tfidf", init="baseline", **changes)
        result = json.loads((folder / "result.json").read_text())
        result.update(curve=[], num_epochs=None, best_test_accuracy=None)
        (folder / "result.json").write_text(json.dumps(result))

    return make


def load(make_run):
    runs, _ = find_runs(make_run.root)
    return runs, build_rows(runs)


def test_files(make_run, make_baseline, tmp_path):
    for seed in (1, 2):
        make_run("full", seed, init="scratch")
        make_run("full", seed)
        make_run("lora", seed)
    make_baseline()
    runs, rows = load(make_run)
    out = tmp_path / "out"
    out.mkdir()
    paths = plots.draw_all(runs, rows, out)
    assert sorted(path.name for path in paths) == [
        f"books-{name}.{kind}"
        for name in ("accuracy", "loss", "parameters")
        for kind in ("png", "svg")
    ]
    for path in paths:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
    first = {path: path.read_bytes() for path in paths if path.suffix == ".svg"}
    plots.draw_all(runs, rows, out)
    assert all(path.read_bytes() == content for path, content in first.items())


def test_accuracy_figure_has_each_seed_and_the_mean(make_run, make_baseline):
    for seed, correct in {1: 1500, 2: 1700}.items():
        make_run("full", seed, [(300, correct), (320, correct + 100)])
        make_run("full", seed, [(200, 1000), (220, 1100)], init="scratch")
        make_run("lora", seed)
    make_baseline(epochs=[(330, 1640)])
    runs, _ = load(make_run)
    figure = plots.accuracy_figure("books", [run.result for run in runs])
    valid, test = figure.axes
    assert (valid.get_title(), test.get_title()) == ("on valid", "on test")
    assert len(test.lines) == 2 * (2 + 1) + 1  # a line a seed, the mean; the baseline
    curves = [[round(float(y), 6) for y in line.get_ydata()] for line in test.lines]
    assert [75.0, 80.0] in curves and [85.0, 90.0] in curves
    assert [80.0, 85.0] in curves and [50.0, 55.0] in curves and [82.0, 82.0] in curves
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [text.split(",")[0] for text in legend] == ["pretrained", "scratch", "tfidf"]


def test_parameters_figure(make_run, make_baseline):
    for seed, correct in {1: 1500, 2: 1700}.items():
        make_run("full", seed, [(300, correct)])
        make_run("lora", seed, [(300, correct)])
    make_baseline()
    _, rows = load(make_run)
    figure = plots.parameters_figure("books", rows)
    (axis,) = figure.axes
    assert axis.get_xscale() == "log"
    points = [bar.lines[0].get_xydata().tolist()[0] for bar in axis.containers]
    assert points == [[23092738, 80.0], [329218, 80.0]]
    assert all(bar.has_yerr for bar in axis.containers)
    assert "mean ± sd" in figure.get_suptitle()


def test_one_seed_without_full_and_with_unequal_epochs(make_run):
    make_run("lora", 1, [(300, 1500), (300, 1500)])
    make_run("lora", 2, [(300, 1500)])
    make_run("head_only", 1, [(300, 1500)])
    runs, rows = load(make_run)
    results = [run.result for run in runs]
    assert plots.accuracy_figure("books", results) is None
    bars = plots.parameters_figure("books", rows).axes[0].containers
    assert sorted(bar.has_yerr for bar in bars) == [False, True]
    lines = plots.loss_figure("books", results, rows).axes[0].lines
    assert [list(line.get_xdata()) for line in lines] == [[1], [1]]


def test_only_a_baseline_draws_nothing(make_run, make_baseline, tmp_path):
    make_baseline()
    assert plots.draw_all(*load(make_run), tmp_path) == []


def test_no_two_methods_look_alike():
    """As many as there are methods now, and as many combinations."""
    rows = [{"method": f"method{n}"} for n in range(40)]
    styles = drawing.styles(rows)
    assert len({(colour, marker) for colour, marker, _ in styles.values()}) == 40
    assert len({marker for _, marker, _ in list(styles.values())[:13]}) == 13


def test_both_libraries_stand_in_one_figure(make_run):
    make_run("full", 1, [(300, 1500), (320, 1600)])
    make_run("hf-full", 1, [(300, 1400), (320, 1700)])
    make_run("hf-lora", 1, [(300, 1000), (320, 1000)])
    runs, _ = load(make_run)
    _, test = plots.accuracy_figure("books", [run.result for run in runs]).axes
    means = {line.get_label(): list(line.get_ydata()) for line in test.lines}
    named = {label: y for label, y in means.items() if not label.startswith("_")}
    assert set(named) == {"pretrained, 1 seed", "Hugging Face, 1 seed"}
    assert [round(float(y), 6) for y in named["Hugging Face, 1 seed"]] == [70.0, 85.0]
