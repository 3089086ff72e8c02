"""Pictures: there, not empty, the right curves in them, and none where there is nothing to draw."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from fairseq_peft.cli import main
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


def test_no_two_data_sets_share_a_picture(make_run, tmp_path):
    for data in ("my data", "my+data", "my_data", "My_data"):
        make_run(data=data)
    paths = plots.draw_all(*load(make_run), tmp_path)
    assert len(paths) == len({str(path).lower() for path in paths}) == 4 * 6
    assert {path.name for path in plots.draw_all(*load(make_run), tmp_path)} == {
        path.name for path in paths
    }


def test_accuracy_figure_has_each_seed_and_the_mean(make_run, make_baseline):
    for seed, correct in {1: 1500, 2: 1700}.items():
        make_run("full", seed, [(300, correct), (320, correct + 100)])
        make_run("full", seed, [(200, 1000), (220, 1100)], init="scratch")
        make_run("lora", seed)
    make_baseline(epochs=[(330, 1640)])
    runs, rows = load(make_run)
    figure = plots.curve_figures("books", [run.result for run in runs], rows)["accuracy"]
    panels = {axis.get_title(): axis for axis in figure.axes}
    assert list(panels) == ["full, scratch", "full", "lora"]
    full = panels["full"]
    # test and valid: a line a seed, the mean; what was chosen; tfidf
    assert len(full.lines) == 2 * (2 + 1) + 1 + 1
    curves = [[round(float(y), 6) for y in line.get_ydata()] for line in full.lines]
    for curve in ([75, 80], [85, 90], [80, 85], [82, 82], [75, 80]):
        assert curve in curves
    grey = next(line for line in panels["lora"].lines if line.get_label() == "full, test")
    assert [round(float(y), 6) for y in grey.get_ydata()] == [80.0, 85.0]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(legend) == ["chosen", "full, test", "test", "tfidf", "valid"]


def test_every_method_is_in_the_accuracy_figure(make_run):
    names = [f"method{n}" for n in range(14)]
    for name in names:
        make_run(name, 1)
    runs, rows = load(make_run)
    figure = plots.curve_figures("books", [run.result for run in runs], rows)["accuracy"]
    assert sorted(axis.get_title() for axis in figure.axes) == sorted(names)
    # no panel lies on another, and the last one of each column names its axis
    figure.canvas.draw()
    boxes = [axis.get_tightbbox().padded(-1) for axis in figure.axes]
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
    columns = {}
    for axis in figure.axes:
        columns.setdefault(round(axis.get_position().x0, 3), []).append(axis)
    assert len(columns) == 5
    for column in columns.values():
        lowest = min(column, key=lambda axis: axis.get_position().y0)
        assert [axis for axis in column if axis.get_xlabel()] == [lowest]


@pytest.mark.parametrize(("num_classes", "has_numbers"), [(3, True), (20, False), (21, None)])
def test_confusion_figure(num_classes, has_numbers):
    names = [f"class{n}" for n in range(num_classes)]
    classes = [{"class": name, "predicted_as": {name: 3, names[0]: 1}} for name in names[1:]]
    classes.insert(0, {"class": names[0], "predicted_as": {names[0]: 4}})
    row = {"init": "pretrained", "method": "lora", "classes": classes}
    figure = plots.confusion_figure("books", [row, {**row, "method": "full", "classes": None}])
    if has_numbers is None:
        assert figure is None
        return
    axis = next(axis for axis in figure.axes if axis.get_title() == "lora")
    shares = axis.images[0].get_array()
    assert shares[1].tolist()[:3] == [25.0, 75.0, 0.0] and shares[0, 0] == 100
    assert [text.get_text() for text in axis.texts[3:5]] == ["25", "75"][: 2 * has_numbers]


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
    assert plots.confusion_figure("books", rows) is None
    bars = plots.parameters_figure("books", rows).axes[0].containers
    assert sorted(bar.has_yerr for bar in bars) == [False, True]
    lines = plots.loss_figure("books", results, rows).axes[0].lines
    assert [list(line.get_xdata()) for line in lines] == [[1], [1]]


@pytest.mark.parametrize("anew", [True, False])
def test_an_average_is_on_no_curve(make_run, anew):
    """No validation of its run is its own, also where its file still has those of the run."""
    make_run("lora", 1)
    folder = make_run("lora-best2", 1)
    result = {**json.loads((folder / "result.json").read_text()), "averaged": [100, 200]}
    if anew:
        result.update(curve=[], best_test_epoch=None, best_test_accuracy=None)
    (folder / "result.json").write_text(json.dumps(result))
    runs, rows = load(make_run)
    results = [run.result for run in runs]
    best = {row["method"]: row["best_test_accuracy_mean"] for row in rows}
    assert best == {"lora": 0.8, "lora-best2": None}
    (axis,) = plots.curve_figures("books", results, rows)["accuracy"].axes
    assert axis.get_title() == "lora"
    (line,) = plots.loss_figure("books", results, rows).axes[0].lines
    assert line.get_label() == "lora, pretrained"


@pytest.mark.parametrize(("seeds", "said"), [((1,), "one seed"), ((1, 2), "mean over seeds")])
def test_the_loss_figure_says_over_how_many_seeds(make_run, seeds, said):
    make_run("full", 1)
    for seed in seeds:
        make_run("lora", seed)
    runs, rows = load(make_run)
    figure = plots.loss_figure("books", [run.result for run in runs], rows)
    assert figure.get_suptitle() == f"books: training loss ({said})"


def test_numbers_of_rows_stand_in_their_order(make_run):
    for name in ("lora-256", "lora-64", "lora", "lora-16"):
        make_run(name, 1)
    _, rows = load(make_run)
    assert [row["method"] for row in rows] == ["lora", "lora-16", "lora-64", "lora-256"]


def test_a_label_that_the_font_lacks_is_no_warning(make_run, tmp_path, recwarn):
    make_run("full", 1, data="books \N{FOX FACE} \N{DEVANAGARI LETTER A}")
    (tmp_path / "out").mkdir()
    assert plots.draw_all(*load(make_run), tmp_path / "out")
    assert not [str(one.message) for one in recwarn]


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
    runs, rows = load(make_run)
    figure = plots.curve_figures("books", [run.result for run in runs], rows)["accuracy"]
    panels = {axis.get_title(): axis for axis in figure.axes}
    assert set(panels) == {"full", "hf-full", "hf-lora"}
    lines = {line.get_label(): list(line.get_ydata()) for line in panels["hf-full"].lines}
    assert [round(float(y), 6) for y in lines["test"]] == [70.0, 85.0]
    assert [round(float(y), 6) for y in lines["full, test"]] == [75.0, 80.0]


def test_the_curves_are_of_the_metric_that_chose(make_run, make_baseline):
    """A figure for each metric; against updates, where an epoch has several validations."""
    make_run("full", 1)
    make_run("adapter", 1, chosen_by={"metric": "mcc", "subset": "valid", "maximize": True})
    by_f1 = {"metric": "macro_f1", "subset": "valid", "maximize": True}
    folder = make_run("lora", 1, [(300, 1500), (320, 1600), (310, 1550)], finish=False)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line, epoch, f1 in zip(lines, (1, 1, 2), (0.6, 0.8, 0.7)):
        line["epoch"] = epoch
        line["subsets"]["valid"]["macro_f1"] = f1
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "chosen_by": by_f1}))
    assert main(["result", str(folder)]) == 0
    make_baseline(epochs=[(330, 1640)])
    runs, rows = load(make_run)
    figures = plots.curve_figures("books", [run.result for run in runs], rows)
    assert sorted(figures) == ["accuracy", "macro_f1", "mcc"]
    (axis,) = figures["macro_f1"].axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert drawn["valid"] == [[100, 60], [200, 80], [300, 70]] and axis.get_xlabel() == "update"
    assert drawn["chosen"] == [[200, 80]]
    assert drawn["test"] == [[100, 50], [200, 50], [300, 50]]
    assert "macro-F1 after each update" in figures["macro_f1"].get_suptitle()
    (axis,) = figures["mcc"].axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert drawn["valid"] == [[1, 0.1], [2, 0.1]] and drawn["chosen"] == [[2, 0.1]]
    (loss,) = plots.loss_figure("books", [run.result for run in runs], rows).axes
    assert loss.get_xlabel() == "update"


LONG = "lora-r64-all-linear-maps-alpha128-dropout0.1"
DATA = "french-book-reviews-of-amazon-2010-cleaned"


def inside(figure) -> bool:
    """Whether all that is written is within the picture, and no two titles lie on each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.canvas.draw()
    whole = figure.bbox.padded(1)
    legends = [text for legend in figure.legends for text in legend.get_texts()]
    titles = [figure._suptitle, *(axis.title for axis in figure.axes)]
    names = [axis.xaxis.label for axis in figure.axes]
    boxes = [text.get_window_extent() for text in (*titles, *legends, *names) if text.get_text()]
    apart = [text.get_window_extent() for text in titles if text.get_text()]
    apart += [legend.get_window_extent() for legend in figure.legends]
    return all(
        whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
        for box in boxes
    ) and not any(one.overlaps(two) for n, one in enumerate(apart) for two in apart[:n])


def test_long_names_and_many_methods_stay_inside(make_run):
    names = ["full", LONG, LONG.replace("64", "32"), *(f"method{n}" for n in range(20))]
    for name in names:
        make_run(name, 1, data=DATA)
    runs, rows = load(make_run)
    results = [run.result for run in runs]
    with drawing.settings():
        figures = [
            plots.parameters_figure(DATA, rows),
            plots.loss_figure(DATA, results, rows),
            *plots.curve_figures(DATA, results, rows).values(),
        ]
        assert [inside(figure) for figure in figures] == [True] * 3
    assert figures[0].axes[0].get_window_extent().width > 0.4 * figures[0].bbox.width


def test_the_parameters_figure_has_the_score_of_its_kind(make_run):
    """For any number of labels a row micro-F1, as everywhere else in the report."""
    make_run("full", 1)
    _, (row,) = load(make_run)
    for kind, key, name in (
        ("labels", "test_micro_f1", "test micro-F1 %"),
        ("number", "test_pearson", "test Pearson correlation"),
    ):
        one = {**row, "kind": kind, f"{key}_mean": 0.9, f"{key}_sd": None}
        figure = plots.parameters_figure("books", [one])
        assert figure.axes[0].get_ylabel() == name
        value = figure.axes[0].containers[0].lines[0].get_ydata()[0]
        assert value == pytest.approx(90 if kind == "labels" else 0.9)


def test_lines_of_one_colour_differ_in_their_style():
    styles = [drawing.style(n) for n in range(21)]
    assert len({(colour, str(line)) for colour, _, line in styles}) == 21
