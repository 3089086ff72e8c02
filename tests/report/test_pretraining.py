"""The curve of a pre-training: read from fairseq's logs, restarts included, and drawn."""

import json
import math

import pytest

from fairseq_peft.cli import main
from fairseq_peft.report.pretraining import points, read_curve, read_logs

START = "2026-01-01 10:00:00 | INFO | fairseq.trainer | Preparing to load checkpoint x.pt"


def train_line(num_updates, bits, wall, wpb=100):
    stats = {"epoch": 1, "loss": str(bits), "wpb": str(wpb), "num_updates": str(num_updates),
             "lr": "0.1", "wall": str(wall)}  # fmt: skip
    return f"2026-01-01 10:00:00 | INFO | train_inner | {json.dumps(stats)}"


def valid_line(num_updates, bits):
    stats = {"epoch": 1, "valid_loss": str(bits), "valid_num_updates": str(num_updates)}
    return f"2026-01-01 10:00:00 | INFO | valid | {json.dumps(stats)}"


@pytest.fixture
def logs(tmp_path):
    short = [START, "| INFO | fairseq_cli.train | {'not': 'json'}"]
    short += [train_line(10, 10, 5), train_line(20, 8, 9), valid_line(20, 9)]
    short += [START, train_line(20, 8.5, 15), train_line(30, 7, 20)]  # killed after 20, again
    long = [START, train_line(40, 6, 7, wpb=300), valid_line(45, 5)]
    (tmp_path / "short.log").write_text("\n".join(short))
    (tmp_path / "long.log").write_text("\n".join(long))
    return tmp_path


def test_rows_of_two_phases_and_a_restart(logs):
    rows = read_logs([(64, logs / "short.log"), (256, logs / "long.log")])
    assert [row["num_updates"] for row in rows] == [10, 20, 30, 40, 45]
    assert [row["num_tokens"] for row in rows] == [1000, 2000, 3000, 6000, 7500]
    assert [row["seconds"] for row in rows] == [5, 9 + 15, 9 + 20, 29 + 7, 29 + 7]
    assert [row["phase"] for row in rows] == [1, 1, 1, 2, 2]
    assert [row["tokens_per_sample"] for row in rows] == [64, 64, 64, 256, 256]
    assert points(rows, "train_loss")[1] == pytest.approx(
        [bits * math.log(2) for bits in (10, 8.5, 7, 6)], abs=1e-4
    )
    assert points(rows, "valid_loss") == ([20, 45], pytest.approx([6.2383, 3.4657]))


def test_verbs_write_the_curve_and_the_picture(logs, capsys):
    curve = logs / "run" / "pretrain.jsonl"
    curve.parent.mkdir()
    specs = [f"64:{logs / 'short.log'}", f"256:{logs / 'long.log'}"]
    assert main(["pretraining-curve", *specs, "--out", str(curve)]) == 0
    assert len(read_curve(curve)) == 5
    picture = logs / "figures" / "curve.png"
    assert main(["plot-pretraining", f"svd={curve}", str(curve), "--out", str(picture)]) == 0
    svg = picture.with_suffix(".svg").read_text()
    assert picture.stat().st_size > 10_000
    for text in ("updates", "nats", "svd", "run", "valid", "train"):
        assert f"<!-- {text}" in svg or text in svg


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        (["pretraining-curve", "short.log", "--out", "a.jsonl"], "is no LENGTH:LOG"),
        (["pretraining-curve", "64:missing.log", "--out", "a.jsonl"], "is no LENGTH:LOG"),
        (["pretraining-curve", "64:empty.log", "--out", "a.jsonl"], "No losses in 64:empty.log"),
        (["plot-pretraining", "missing.jsonl", "--out", "a.png"], "missing.jsonl does not exist"),
        (["plot-pretraining", "short.log", "--out", "a.png"], "is no pretrain.jsonl"),
        (["plot-pretraining", "empty.log", "--out", "a.png"], "is no pretrain.jsonl"),
        (["plot-pretraining", "x=a", "x=b", "--out", "a.png"], "Two curves are named x"),
        (["plot-pretraining", "x=", "--out", "a.png"], "has no file behind its name"),
        (["plot-pretraining", "short.log", "--out", "a.jpeg"], "ends in .png or .svg"),
    ],
)
def test_verbs_refuse(logs, monkeypatch, capsys, verb, message):
    monkeypatch.chdir(logs)
    (logs / "empty.log").write_text("nothing here\n" if verb[0] == "pretraining-curve" else "")
    assert main(verb) == 1
    assert message in capsys.readouterr().err
    assert not list(logs.glob("a.*"))
