"""The page of ``report --html``: one file, all of it escaped, for whatever runs there are."""

import argparse
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import setuptools
from fake_runs import write_data, write_methods, write_run
from helpers import PACKAGE, ROOT

from fairseq_peft.cli import main
from fairseq_peft.commands import report
from fairseq_peft.report.html import against
from fairseq_peft.report.html.words import headline
from fairseq_peft.report.references import without_number
from fairseq_peft.runs import predictions

for _package in ("jinja2", "vl_convert"):  # of the extra html
    pytest.importorskip(_package)

EVIL = "</script><img/src=x/onerror=alert(1)>"


def page_of(runs, *flags):
    """What ``report --html`` writes."""
    out = runs / "page.html"
    assert main(["report", str(runs), "--html", str(out), *flags]) == 0
    return out.read_text(encoding="utf-8")


def visible(page):
    """The page's words: no tags, style and script."""
    body = re.sub(r"<(style|script)>.*?</\1>|<svg.*?</svg>", " ", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """A page whose every name, label and text wants to be markup: (folder of the runs, page)."""
    folder = tmp_path_factory.mktemp("evil")
    labels = ["bad", EVIL]
    data = folder / "data-bin" / "books<b>"
    target = write_data(data, "classes", labels, 80, texts=(f"a text {EVIL}", "short"))
    runs = folder / "runs"
    write_methods(runs, data, target, (1, 2), ("full", "prompt"), labels=labels)
    write_run(runs, data, target, "lora<i>", labels=labels, knobs={EVIL: EVIL})
    write_run(runs, data, target, "prompt-16", labels=labels, train_rows=16, skill=0.3)
    return runs, page_of(runs)


def test_names_lie_on_no_other_point_or_name():
    """Places as people see them: (x in 272 pixels, y in 228, name)."""
    given = [(0, 0, "far_left"), (20, 8, "near"), (20, 160, "low"), (240, 160, "right of all"),
             (150, 80, "in a crowd"), (165, 72, ""), (135, 72, ""), (165, 92, ""), (135, 92, ""),
             (0, 220, "on a line"), (272, 228, ""), (200, 49, "below a line")]  # fmt: skip
    values = [{"x": x, "y": -y, "low": -y, "high": -y, "name": name} for x, y, name in given]
    named = [value for value in values if value["name"]]
    levels = [{"y": -y, "text": text} for y, text in ((226, "tfidf 80 %"), (40, "nothing near"))]
    points, lines = against.names_beside(named, values, is_log=False, levels=levels)
    places = {value["name"]: place for place, part in points.items() for value in part}
    assert places == {  # a crowd leaves no room
        "far_left": ("left", -9),
        "near": ("left", 12),
        "low": ("left", -9),
        "right of all": ("right", -9),
        "on a line": ("left", -9),
        "below a line": ("left", 12),  # the line would cross it above
    }
    found = {level["text"]: place for place, part in lines.items() for level in part}
    assert found == {"tfidf 80 %": ("left", 10), "nothing near": ("left", -8)}


def test_what_users_wrote_is_no_markup(evil):
    page = evil[1]
    assert EVIL not in page and "<img" not in page and "<i>" not in page and "<b>" not in page
    assert page.count("<script>") == page.count("</script>") == 1
    text = visible(page)
    for word in ("books&lt;b&gt;", "lora&lt;i&gt;", "a text &lt;/script&gt;&lt;img"):
        assert word in text


def test_nothing_is_asked_of_anywhere(evil):
    page = evil[1]
    addresses = set(re.findall(r"\w+://[^\s\"'<)]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r'(?:href|src)="([^#"][^"]*)"', page)) == {"data:,"}
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", page)


def test_the_page_is_small(evil):
    assert len(evil[1].encode()) < 250_000


def test_every_part_is_there(evil):
    text = visible(evil[1])
    for part in (
        *("What may be concluded", "Test accuracy against trainable parameters", "against time"),
        *(
            "Test accuracy against training rows",
            "Accuracy % after each epoch",
            "What was taken for what",
        ),
        *("Wrong with every seed", "Right with one", "What differs between the rows"),
        *("Run it again", "fairseq-train", "Versions and hardware", "torch 2.13.0+cpu"),
    ):
        assert part.lower() in text.lower(), part


def test_the_texts_can_stay_away(evil):
    page = page_of(evil[0], "--no-texts")
    assert "a text" not in page and "Wrong with every seed" in page


def test_texts_are_shown_only_where_their_labels_are_those_of_the_runs(tmp_path):
    data = tmp_path / "data-bin" / "books"
    target = write_data(data, "classes", ["bad", "good"], 40, texts=("Two readings",))
    write_run(tmp_path / "runs", data, target, skill=0.1)
    assert "Two readings" in page_of(tmp_path / "runs")
    lines = (data / "raw" / "test.label").read_text().split()
    lines[0] = {"bad": "good", "good": "bad"}[lines[0]]
    (data / "raw" / "test.label").write_text("\n".join(lines) + "\n")
    page = page_of(tmp_path / "runs")
    assert "Two readings" not in page
    assert "are not those that the runs were measured on" in page
    shutil.rmtree(data)
    assert "is not here" in page_of(tmp_path / "runs")


@pytest.mark.parametrize("kind", ["labels", "number"])
def test_other_kinds(tmp_path, kind):
    labels = ["arts", "sport", "trade"] if kind == "labels" else []
    data = tmp_path / "data-bin" / "tags"
    target = write_data(data, kind, labels, 60)
    runs = tmp_path / "runs"
    write_methods(runs, data, target, (1,), ("full", "ia3"), kind=kind, labels=labels)
    text = visible(page_of(runs))
    assert "What was taken for what" not in text
    assert ("micro-F1 %" if kind == "labels" else "Pearson") in text
    heading = "Micro-F1 % after" if kind == "labels" else "Pearson correlation after"
    assert f"{heading} each epoch" in text and "thin: each seed" not in text  # it is one
    assert ("Wrong with every seed" in text) == (kind == "labels")
    for told in ("Difference to full: points", "highest test accuracy"):
        assert (told in text) == (kind == "labels")
    assert ("Not compared row by row: where a row has a number" in text) == (kind == "number")


def test_a_figure_of_differences_has_one_reference(tmp_path):
    """scratch/lora is compared with scratch/full, and not to be read beside pretrained/lora."""
    data = tmp_path / "data-bin" / "books"
    target = write_data(data, "classes", ["bad", "good"], 60)
    for init in ("pretrained", "scratch"):
        for name in ("full", "lora", "adapter"):
            seconds = 900 if name == "lora" else 300
            write_run(tmp_path / "runs", data, target, name, 1, init, seconds=seconds)
    page = page_of(tmp_path / "runs")
    titles = re.findall(r"<figcaption>(Difference [^<]*)", page)
    assert titles == ["Difference to pretrained/full", "Difference to scratch/full"]
    (second,) = re.findall(r"Difference to scratch/full</figcaption>.*?</figure>", page, flags=re.S)
    assert "scratch/lora" in second and "pretrained/full" not in second
    assert "k</text>" not in page.split("against time")[1].split("</figure>")[0]  # seconds: 2,000


def test_times_of_several_machines_do_not_compare(make_run):
    for n, device in enumerate(("cpu", "NVIDIA H200")):
        folder = make_run(("full", "lora")[n], 1)
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps({**result, "device": device}))
    assert "their times do not compare" in visible(page_of(make_run.root))


def test_one_run_of_an_earlier_version(make_run):
    """No predictions, no plan, no labels' texts; beside it a run that is not finished."""
    make_run("lora", 1)
    make_run("lora", 2, finish=False)
    text = visible(page_of(make_run.root))
    assert "with one method alone, nothing may be concluded" in text
    assert "No run has predictions" in text and "1 unfinished" in text
    assert "fairseq-train ..." in text


def test_many_methods_stay_one_small_page(make_run):
    for k in range(100):
        make_run(f"lora_{k}", 1, epochs=[(300, 1400 + k)])
    page = page_of(make_run.root)
    assert len(page.encode()) < 1_000_000
    assert page.count("<tr>") > 100 and "76 lowest on test are left out" in page


def test_an_empty_folder_is_a_sentence(tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path), "--html", str(out)]) == 1
    assert "no result.json below" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--html", "page.txt"], "ends in .html"),
        (["--no-texts"], "no effect without --html"),
    ],
)
def test_flags_that_do_not_fit(make_run, capsys, flags, words):
    make_run()
    assert main(["report", str(make_run.root), *flags]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["vl_convert", "jinja2"])
def test_a_missing_library_is_a_sentence(make_run, capsys, monkeypatch, missing):
    make_run()
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["report", str(make_run.root), "--html"]) == 1
    assert "pip install 'fairseq-peft[html]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "path"),
    [
        (["--html"], "runs/report.html"),
        (["--html", "--out", "tables"], "tables/report.html"),
        (["--html", "a/page.html", "--out", "tables"], "a/page.html"),
        ([], None),
    ],
)
def test_the_page_lies_beside_the_runs_or_the_tables(flags, path):
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    found = report.page_path(parser.parse_args(["runs", *flags]))
    assert found == (path and Path(path))


def test_a_wheel_has_the_templates(monkeypatch):
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    packed = {
        path
        for package, patterns in given["package_data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    there = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {path for path in there if path.suffix != ".py"} == packed


# ---- the sentence --------------------------------------------------------------------------------


def row(method, accuracy=0.8, init="pretrained", seeds=3, **changes):
    found = {"init": init, "method": method, "kind": "classes", "num_seeds": seeds}
    return {**found, "test_accuracy_mean": accuracy, "test_accuracy_sd": 0.01, **changes}


def compared(method, low, high, p, seeds=3):
    """Against pretrained/full; a difference is told where p is small and 0 is left out."""
    middle = (low + high) / 2
    return row(
        method,
        paired_with="pretrained/full",
        paired_seeds=seeds,
        paired_rows=2000,
        paired_difference_low=low,
        paired_difference_mean=middle,
        paired_difference_high=high,
        paired_wins=10 if middle > 0 else 2,
        paired_losses=2 if middle > 0 else 10,
        mcnemar_p_holm=p,
    )


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [row("full"), compared("lora", -0.01, 0.02, 0.3), compared("ia3", -0.05, -0.02, 0.001)],
            "ia3 is worse than full; lora cannot be told apart from it (3 seeds and 2,000 test "
            "rows).",
        ),
        (  # neither the interval alone nor p alone
            [row("full"), compared("lora", 0.01, 0.02, 0.06), compared("ia3", -0.05, 0.01, 0.001)],
            "lora and ia3 cannot be told apart from full (3 seeds and 2,000 test rows).",
        ),
        (
            [row("full"), compared("lora", 0.01, 0.02, 0.01, seeds=1)],
            "lora is better than full (1 seed and 2,000 test rows); one seed speaks of runs, not "
            "of methods.",
        ),
        (
            [row("lora", 0.85), row("ia3", 0.9)],
            "No difference may be concluded, as no runs are compared row by row; the highest test "
            "accuracy of 2 is that of ia3, 90.00 ± 1.00 %.",
        ),
        (
            [row("lora", 0.85, "scratch")],
            "scratch/lora reaches 85.00 ± 1.00 % test accuracy with 3 seeds; with one method "
            "alone, nothing may be concluded about methods.",
        ),
        ([row("lora", None)], "Nothing may be concluded: no run was evaluated on test."),
    ],
)
def test_what_may_be_concluded(rows, sentence):
    assert headline(rows) == sentence


def test_runs_on_a_drawn_part_are_not_in_the_sentence(evil):
    sentence = re.search(r'class="lead">(.*?)</p>', evil[1], re.S)[1]
    assert "prompt" in sentence and "prompt-16" not in sentence


@pytest.mark.parametrize(
    ("method", "number", "name"),
    [
        ("lora-64", 64, "lora"),
        ("lora_64", 64, "lora"),
        ("lora-64", 16, "lora-64"),
        ("lora", 1600, "lora"),
        ("lora164", 64, "lora164"),
        ("-64", 64, "-64"),
    ],
)
def test_a_few_shot_line_is_named_without_its_number(method, number, name):
    assert without_number(method, number) == name


def test_examples_by_hand(tmp_path):
    """Row 2 is wrong with both methods, row 3 with one of them alone."""
    data = tmp_path / "data-bin" / "books"
    target = write_data(data, "classes", ["bad", "good"], 4)
    runs = tmp_path / "runs"
    for method, wrong in (("full", [1]), ("lora", [1, 2])):
        folder = write_run(runs, data, target, method, skill=9)  # all right
        predicted = target.copy()
        predicted[wrong] = 1 - predicted[wrong]
        found = predictions.read(folder / predictions.NAME)
        found.add("test", target, predicted)
        predictions.write(folder / predictions.NAME, found)
        path = folder / "result.json"
        result = json.loads(path.read_text())
        result["test_accuracy"] = float(np.mean(predicted == target))
        path.write_text(json.dumps(result))
    text = visible(page_of(runs))
    hard = text.split("Wrong with every seed of every method")[1].split("Right with one")[0]
    disputed = text.split("Right with one, wrong with another")[1].split("Settings")[0]
    assert re.findall(r"Row (\d)", hard) == ["2"] and re.findall(r"Row (\d)", disputed) == ["3"]
    other = ["bad", "good"][1 - target[2]]
    assert f"right full wrong lora gave {other}" in disputed
