"""The tables, and the verb that prints and writes them."""

import csv
import json
import os
import subprocess
import sys

import pytest

from fairseq_peft.cli import main

KEYS = [
    "data",
    "init",
    "method",
    "seeds",
    "num_seeds",
    "test_accuracy_mean",
    "test_accuracy_sd",
    "test_accuracy_best",
    "test_accuracy_worst",
    "valid_accuracy_mean",
    "best_test_accuracy_mean",
    "difference_to_full_mean",
    "difference_to_full_low",
    "difference_to_full_high",
    "trainable_parameters",
    "total_parameters",
    "task_bytes",
    "seconds_mean",
    "tokens_per_second_mean",
    "peak_memory_bytes",
    "learning_rate",
]


@pytest.fixture
def runs(make_run):
    for seed, correct in enumerate((1600, 1620, 1640), start=1):
        make_run("full", seed, [(300, correct), (280, 1700)])
        make_run("lora", seed, [(300, correct + 20 * seed)])
    make_run("head_only", 1, [(300, 1500)])
    return make_run.root


def test_terminal(runs, capsys):
    assert main(["report", str(runs)]) == 0
    text = capsys.readouterr().out
    accuracy = text.split("\n\n")[0].splitlines()
    (full,) = (line for line in accuracy if " full " in line and "±" in line)
    assert "81.00 ± 1.00" in full and "85.00" in full  # chosen on valid, and best epoch on test
    (lora,) = (line for line in accuracy if " lora " in line and "±" in line)
    assert "+2.00 [-0.48, +4.48]" in lora and "329,218" in lora
    (head,) = (line for line in accuracy if " head_only " in line)
    assert "±" not in head and "0.00" not in head.replace("75.00", "").replace("-5.00", "")
    assert "best accuracy on valid" in text
    assert "chosen ON TEST" in text
    assert "3 a row (1, 2, 3); books/pretrained/head_only has 1" in text
    assert "2,000 rows" in text


def test_width_with_long_names_and_large_numbers(make_run, capsys):
    long = "adapter-after-attention-and-feed-forward-with-a-long-name"
    for seed, correct in {1: 0, 2: 2000, 3: 10}.items():
        make_run("full", seed, [(300, 2000 - correct)])
        make_run(
            long,
            seed,
            [(300, correct)],
            data="books-" + "x" * 60,
            trainable_parameters=355_359_744_000,
            total_parameters=355_359_744_000,
            task_bytes=1_421_438_976_000,
        )
        make_run(long, seed, [(300, correct)], trainable_parameters=355_359_744)
    make_run("lora", 7, finish=False)
    assert main(["report", str(make_run.root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    assert any("adapter" in line and ".." in line for line in lines)
    assert any("Unfinished" in line for line in lines)


def test_warnings_are_in_every_readable_table(make_run, tmp_path, capsys):
    make_run("lora", 1, lr=0.001)
    make_run("lora", 2, lr=0.003)
    out = tmp_path / "out"
    assert main(["report", str(make_run.root), "--out", str(out)]) == 0
    capsys.readouterr()
    for name in ("report.txt", "report.md"):
        assert "differ in learning rate" in " ".join((out / name).read_text().split())
    (row,) = json.loads((out / "report.json").read_text())
    assert row["learning_rate"] is None and "learning rate" in row["notes"][0]


def test_json_csv_and_markdown(runs, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert main(["report", str(runs), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert (out / "report.txt").read_text() == printed
    rows = json.loads((out / "report.json").read_text())
    assert len(rows) == 3
    for row in rows:
        assert set(KEYS) <= set(row)
        assert 0 <= row["test_accuracy_mean"] <= 1
    assert rows[2]["method"] == "head_only"
    assert rows[2]["test_accuracy_sd"] is None

    with (out / "report.csv").open() as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == [key for key in rows[0] if key != "classes"]
    assert table[0]["seeds"] == "1 2 3"
    assert float(table[0]["test_accuracy_mean"]) == rows[0]["test_accuracy_mean"]
    assert table[2]["test_accuracy_sd"] == ""

    lines = (out / "report.md").read_text().splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert len(tables) == 3 * (2 + 3)  # accuracy, scores, cost: header, rule, three rows
    assert {line.count("|") for line in tables[:5]} == {11}
    assert "| pretrained | lora | 329,218 | 3 | 83.00 ± 2.00 |" in "\n".join(lines)


def test_without_test_split(make_run, capsys):
    make_run("full", 1, [(300, None)], rows={"train": 1600, "valid": 400})
    assert main(["report", str(make_run.root)]) == 0
    assert "75.00" in capsys.readouterr().out


def test_bad_input_is_one_sentence(tmp_path, make_run, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("fairseq-peft report: error: no result.json below")
    make_run()
    (tmp_path / "file").write_text("")
    assert main(["report", str(make_run.root), "--out", str(tmp_path / "file")]) == 1
    assert "cannot make" in capsys.readouterr().err


def test_scores_are_in_every_form(make_run, tmp_path, capsys):
    for seed, mcc in {1: 0.25, 2: 0.35}.items():
        path = make_run("lora", seed) / "result.json"
        result = json.loads(path.read_text())
        chosen_by = {"metric": "f1_good", "subset": "valid", "maximize": True}
        result.update(test_macro_f1=0.625, test_mcc=mcc, chosen_by=chosen_by, best_value=0.4321)
        path.write_text(json.dumps(result))
    make_run("full", 1)
    out = tmp_path / "out"
    assert main(["report", str(make_run.root), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    (line,) = (line for line in text.splitlines() if "f1_good" in line and "lora" in line)
    assert line.endswith("43.21  80.00 ± 0.00  62.50 ± 0.00  0.300 ± 0.071")
    assert "best accuracy (1 rows) / f1_good (1 rows) on valid" in " ".join(text.split())
    assert (
        "| pretrained | lora | f1_good | 43.21 | 80.00 ± 0.00 | 62.50 ± 0.00 | 0.300 ± 0.071 |"
        in (out / "report.md").read_text()
    )
    with (out / "report.csv").open() as file:
        row = list(csv.DictReader(file))[1]
    assert (row["metric"], row["best_value_mean"]) == ("f1_good", "0.4321")
    assert (row["test_macro_f1_mean"], row["test_mcc_mean"]) == ("0.625", "0.3")


def test_all_right_is_not_all_certain(make_run, capsys):
    make_run("full", 1, [(400, 2000)])
    assert main(["report", str(make_run.root)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "leave up to ±0.2 points (95 %) open" in text


def test_so_many_rows_that_little_stays_open(make_run, capsys):
    path = make_run("full", 1, [(400, 2000)]) / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "rows": {**result["rows"], "test": 100_000}}))
    assert main(["report", str(make_run.root)]) == 0
    assert "up to ±0.004 points" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "none such"])
def test_the_backend_of_a_notebook_has_no_say(runs, tmp_path, backend):
    program = """
import os, sys
from pathlib import Path
from fairseq_peft.cli import main
from fairseq_peft.report import pretraining_plot
runs, out, backend = sys.argv[1:]
assert main(["report", runs, "--out", out]) == 0
row = {"num_updates": 1, "phase": 1, "train_loss": 2.0, "valid_loss": 2.0}
pretraining_plot.plot_curves({"a": [row]}, Path(out) / "curve.png")
assert os.environ["MPLBACKEND"] == backend
"""
    subprocess.run(
        [sys.executable, "-c", program, runs, tmp_path / "out", backend],
        env={**os.environ, "MPLBACKEND": backend},
        check=True,
    )
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "books-accuracy.png",
        "books-parameters.png",
        "books-loss.png",
        "curve.png",
    }


def test_a_terminal_that_has_ascii_alone(make_run, tmp_path):
    for seed in (1, 2):
        make_run("full", seed, data="écoles")
    name = make_run.root / os.fsdecode(b"caf\xe9")
    name.mkdir()
    (name / "run.json").write_text("{}")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "fairseq_peft.cli",
            "report",
            make_run.root,
            "--out",
            tmp_path / "o",
        ],
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert b"80.00 +- 0.00" in done.stdout and b"\\xe9coles: accuracy" in done.stdout
    assert b"caf\xe9" in done.stdout  # the name as the disk has it
    report = (tmp_path / "o/report.txt").read_text(encoding="utf-8")
    assert (tmp_path / "o/_xe9coles-accuracy.png").exists()
    assert "écoles" in report and "caf\\udce9" in report


def test_import_is_light():
    program = """
import sys
import fairseq_peft.commands.report, fairseq_peft.commands.result, fairseq_peft.commands.tfidf
import fairseq_peft.report.plots, fairseq_peft.report.rows, fairseq_peft.report.tables
import fairseq_peft.report.tfidf, fairseq_peft.report.tensorboard
heavy = {"torch", "fairseq", "matplotlib", "numpy", "scipy", "sklearn", "tensorboard"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_no_torch_in_a_whole_report(runs, tmp_path):
    program = """
import sys
from fairseq_peft.cli import main
runs, out = sys.argv[1:]
assert main(["result", runs + "/books/pretrained/full/seed1"]) == 0
assert main(["report", runs, "--out", out]) == 0
assert "matplotlib" in sys.modules and "tensorboard" in sys.modules
assert not {"torch", "fairseq"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program, runs, tmp_path / "out"], check=True)
