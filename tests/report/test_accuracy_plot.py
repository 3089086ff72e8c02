"""plot-accuracy: lines and levels from run trees, their figures, and a sentence for bad input."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fairseq_peft.cli import main
from fairseq_peft.report import accuracy_plot, drawing
from fairseq_peft.report.rows import build_rows


@pytest.fixture
def trees(make_run):
    """Two sweeps: 75 % and 85 % after 500 updates, 90 % after 4,000; scratch beside the first."""
    make_run("full", 1, [(300, 1500)])
    make_run("full", 2, [(300, 1700)])
    make_run("full", 1, [(300, 1200)], init="scratch")
    first = make_run.root.rename(make_run.root.parent / "first")
    make_run("full", 1, [(300, 1800)])
    return first, make_run.root


def test_lines_and_levels(trees, tmp_path, capsys):
    first, second = trees
    out = tmp_path / "new" / "curve.png"
    words = [f"4000={second}", f"500={first}", "--x-label", "updates", "--out", str(out)]
    assert main(["plot-accuracy", *words]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| updates | full, pretrained | full, scratch |",
        "| ---: | ---: | ---: |",
        "| 500 | 80.00 ± 7.07 (2) | 60.00 |",
        "| 4000 | 90.00 | - |",
    ]
    assert out.read_bytes().startswith(b"\x89PNG") and out.with_suffix(".svg").is_file()
    drawing = out.with_suffix(".svg").read_text()
    for text in ("updates", "full, pretrained", "full, scratch", "mean ± sd over seeds"):
        assert f"<!-- {text}" in drawing or text in drawing


def test_numbers_far_apart_are_on_a_logarithmic_axis(trees, tmp_path):
    for numbers, is_log in (((16, 1600), True), ((500, 4000), False)):
        series = accuracy_plot.read_series(dict(zip(numbers, trees)))
        _, path = sorted(accuracy_plot.draw(series, "rows", tmp_path / f"{numbers[0]}.svg"))
        assert ("rows (log scale)" in path.read_text()) == is_log


def test_points_of_the_line(trees):
    first, second = trees
    series = accuracy_plot.read_series({4000: second, 500: first})
    line = series["pretrained", "full"]
    assert list(line) == [500, 4000]
    assert [row["test_accuracy_mean"] for row in line.values()] == pytest.approx([0.8, 0.9])
    assert list(series["scratch", "full"]) == [500]


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["first"], "'first' is no X=RUNS"),
        (["x=first"], "'x=first' is no X=RUNS"),
        (["nan=first"], "'nan=first' is no X=RUNS"),
        (["500="], "'500=' is no X=RUNS"),
        (["500=first", "500.0=runs"], "have the same X"),
        (["500=missing"], "'missing' is not a folder"),
        (["500=first", "--out", "a.pdf"], "ends in .png or .svg"),
    ],
)
def test_bad_input(words, sentence, trees, monkeypatch, capsys):
    monkeypatch.chdir(trees[0].parent)
    assert main(["plot-accuracy", "--out", "a.png", *words]) == 1
    error = capsys.readouterr().err
    assert sentence in error and len(error.splitlines()) == 1


def test_other_data(trees, make_run, monkeypatch, capsys):
    monkeypatch.chdir(trees[0].parent)
    trees[1].rename("second")
    make_run("full", 1, data="films")
    assert main(["plot-accuracy", "1=first", "2=runs", "--out", "a.png"]) == 1
    assert "'runs' has runs on films, and 'first' on books" in capsys.readouterr().err


def test_the_score_is_that_of_the_kind_of_task(trees, tmp_path, monkeypatch, capsys):
    def labels(runs):  # several a row
        f1 = {"kind": "labels", "test_micro_f1_mean": 0.5, "test_micro_f1_sd": None}
        return [row | f1 for row in build_rows(runs)]

    monkeypatch.setattr(accuracy_plot, "build_rows", labels)
    words = [f"{x}={folder}" for x, folder in zip((1, 2), trees)]
    out = tmp_path / "labels.svg"
    assert main(["plot-accuracy", *words, "--out", str(out)]) == 0
    assert "| 2 | 50.00 | - |" in capsys.readouterr().out
    assert "test micro-F1 %" in out.read_text()

    kinds = iter((build_rows, labels))
    monkeypatch.setattr(accuracy_plot, "build_rows", lambda runs: next(kinds)(runs))
    assert main(["plot-accuracy", *words, "--out", str(out)]) == 1
    assert "has runs on labels, and" in capsys.readouterr().err


def test_no_test_split(make_run, monkeypatch, capsys):
    monkeypatch.chdir(make_run.root.parent)
    make_run("full", 1, [(300, None)], rows={"train": 1600, "valid": 400})
    assert main(["plot-accuracy", "1=runs", "--out", "a.png"]) == 1
    assert "no run below runs has a score on test" in capsys.readouterr().err


def test_many_methods_with_long_names_stay_inside(make_run, tmp_path, monkeypatch):
    names = [f"a-method-of-the-number-{n}-and-a-long-name-behind" for n in range(18)]
    for name in names:
        make_run(name, 1)
    kept = []
    monkeypatch.setattr(drawing, "save", lambda figure, out, name: kept.append(figure) or [])
    series = accuracy_plot.read_series({1: make_run.root, 2: make_run.root})
    with drawing.settings():
        accuracy_plot.draw(series, "updates", tmp_path / "curve.png")
        (figure,) = kept
        FigureCanvasAgg(figure)
        figure.canvas.draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.y0 >= 0 and box.y1 < figure._suptitle.get_window_extent().y0
    assert box.x0 > figure.axes[0].xaxis.label.get_window_extent().x1
