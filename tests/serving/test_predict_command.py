"""``fairseq-peft predict``: a row a line, whatever the line holds, and a clean end whatever
happens."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys

import pytest
from helpers import ROOT

pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end

import fairseq_peft  # noqa: E402

#: Lines as bytes, and the text that is predicted.
LINES = [
    (b"beau vif", "beau vif"),
    (b"", ""),
    (b"   ", "   "),
    (b"\t", "\t"),
    (b"nul\ttriste\tfade", "nul\ttriste\tfade"),
    (b"nul\r", "nul"),
    (b"nul\rtriste", "nul\rtriste"),
    (b"\xff\xfebeau", "\ufffd\ufffdbeau"),
    (b"a\x00b\x0bc\x0c", "a\x00b\x0bc\x0c"),
    ("beau\u2028vif\x85nul".encode(), "beau\u2028vif\x85nul"),
    (b"fort " * 50_000, "fort " * 50_000),
    (b"\xef\xbb\xbfvif", "\ufeffvif"),
    (b"\r", ""),
    (b"vif", "vif"),
]


def command(base, folder, *more, python=sys.executable):
    words = [python, "-m", "fairseq_peft.cli", "predict", "--base", base]
    return [str(word) for word in (*words, "--adapter", folder, *more)]


@pytest.fixture(scope="module")
def adapter(train):
    return train("lora") / "adapter"


@pytest.fixture(scope="module")
def predict(base, adapter, python):
    def run(data=b"", *more, words=None):
        words = words or command(base, adapter, *more, python=python)
        return subprocess.run(words, input=data, capture_output=True, cwd=ROOT)

    return run


@pytest.fixture(scope="module")
def expected(base, adapter):
    """What each of LINES is predicted to be, alone."""
    classifier = fairseq_peft.Classifier.load(base, adapter)
    return [classifier.predict([text])[0] for _, text in LINES]


def test_row_n_is_that_of_line_n(predict, expected):
    done = predict(b"\n".join(line for line, _ in LINES), "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["label"] for row in rows] == [row.label for row in expected]
    for row, (label, probability, probabilities) in zip(rows, expected):
        assert row["label"] == label
        assert row["probability"] == pytest.approx(probability, abs=1e-5)
        assert row["probabilities"] == pytest.approx(probabilities, abs=1e-5)
    assert len({row["probability"] for row in rows}) > 6  # else a shift would not show
    assert done.stderr.decode().splitlines() == [
        "fairseq-peft predict: warning: 1 of the lines is not UTF-8: what could not be decoded was "
        "read as U+FFFD. Convert the text, for example with iconv -f WINDOWS-1252 -t UTF-8."
    ]


def test_tsv_of_a_file(predict, expected, tmp_path):
    """A last line with LF is no row more; a byte order mark is no text."""
    path = tmp_path / "texts"
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(line + b"\n" for line, _ in LINES))
    done = predict(b"not read", path)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert [row[0] for row in rows] == [row.label for row in expected]
    assert [float(row[1]) for row in rows] == pytest.approx(
        [row.probability for row in expected], abs=2e-6
    )


def test_nothing_in_nothing_out(predict):
    done = predict(b"")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_answers_come_while_the_input_is_open(base, adapter, python):
    words = command(base, adapter, "--window", 1, python=python)
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        for text in (b"beau\n", b"\n"):
            process.stdin.write(text)
            process.stdin.flush()
            assert process.stdout.readline().count(b"\t") == 1
        process.stdin.close()
        assert process.wait() == 0


def test_a_broken_pipe_is_a_clean_end(base, adapter, tmp_path):
    path = tmp_path / "texts"
    path.write_bytes(b"beau vif\n" * 20_000)
    words = command(base, adapter, path)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout.readline().count(b"\t") == 1
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait() == 0
    assert errors == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_one_line(base, adapter):
    words = command(base, adapter)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(words, input=b"beau\n", stdout=full, stderr=subprocess.PIPE, cwd=ROOT)
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("fairseq-peft predict: error: The output cannot be written: No space")


def test_an_interrupt_is_a_clean_end(base, adapter):
    """130, whole lines, no traceback."""
    words = command(base, adapter, "--window", 1)
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    process.stdin.write(b"beau\n")
    process.stdin.flush()
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate()
    assert process.returncode == 130
    assert first.endswith(b"\n") and rest == b"" and errors == b""


def test_progress_is_for_a_terminal(base, adapter, python, tmp_path):
    path = tmp_path / "texts"
    path.write_bytes(b"beau vif\n" * 100)
    ours, theirs = pty.openpty()
    words = command(base, adapter, path, python=python)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=theirs, cwd=ROOT)
    os.close(theirs)
    out, _ = process.communicate()
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert process.returncode == 0 and out.count(b"\n") == 100
    assert "100 rows" in shown and "100% read" in shown and b"rows" not in out


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "Neither --base nor --adapter"),
        (["--base", "nowhere.pt", "--adapter", "nowhere"], "nowhere is no adapter folder"),
        (["--base", "nowhere.pt"], "nowhere.pt"),
        (["--base", "x", "--batch-size", "0"], "--batch-size 0: give 1 or more"),
        (["--base", "x", "--window", "0"], "--window 0: give 1 or more"),
        (["--base", "x", "nowhere.txt"], "nowhere.txt cannot be read: No such file"),
        (["--base", "x", "."], "cannot be read: Is a directory"),
    ],
)
def test_bad_input_is_one_line(predict, python, flags, text):
    words = [python, "-m", "fairseq_peft.cli", "predict", *flags]
    done = predict(words=words)
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("fairseq-peft predict: error: ") and text in line


def test_precision_and_device_are_passed_on(predict):
    exact = predict(b"beau vif\n", "--format", "jsonl").stdout
    rough = predict(b"beau vif\n", "--format", "jsonl", "--precision", "bf16")
    assert rough.returncode == 0 and rough.stdout != exact
    done = predict(b"beau\n", "--device", "abacus")
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert b"--device" in done.stderr or b"abacus" in done.stderr


def test_pairs_are_cut_at_the_first_tab():
    from fairseq_peft.commands.predict import Lines

    lines = Lines([b"beau\tvif\tnul\r\n", b"sans tab\n", b"\n"], num_texts=2)
    assert list(lines) == [("beau", "vif\tnul"), ("sans tab", ""), ("", "")]
    assert lines.without_tab == 2
