"""``fairseq-peft predict``: a row a line, whatever the line holds, and a clean end whatever
happens."""

from __future__ import annotations

import csv
import gzip
import json
import lzma
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
from fairseq_peft import cli  # noqa: E402

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
    (b"\xef\xbb\xbfvif", "vif"),
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
        "read as U+FFFD. Convert the text, for example with iconv -f WINDOWS-1252 -t UTF-8.",
        "fairseq-peft predict: warning: 1 of the lines is begun by a byte order mark in mid-file, "
        "which was removed.",
        "fairseq-peft predict: warning: 1 of the texts is longer than the model reads, and cut.",
        "fairseq-peft predict: warning: 1 of the texts has pieces that the model does not know.",
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


def test_a_folder_that_is_not_there_is_one_line(base, adapter, tmp_path):
    words = command(base, adapter, "--out", tmp_path / "no" / "rows")
    done = subprocess.run(words, input=b"beau\n", stderr=subprocess.PIPE, cwd=ROOT)
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert f"{tmp_path / 'no' / 'rows'} cannot be written (No such file or directory). " in line
    assert "There is no such folder" in line and "room" not in line


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


@pytest.mark.parametrize("verb", ["predict", "serve"])
def test_int8_says_where_it_is(verb, capsys):
    from fairseq_peft.cli import main

    with pytest.raises(SystemExit):
        main([verb, "--precision", "int8"])
    assert "fairseq-peft export" in capsys.readouterr().err


def test_pairs_are_cut_at_the_first_tab():
    from fairseq_peft.text.streams import Lines

    lines = Lines(iter([b"beau\tvif\tnul\r\n", b"sans tab\n", b"\n"]), num_texts=2)
    assert list(lines) == [("beau", "vif\tnul"), ("sans tab", ""), ("", "")]
    assert lines.without_tab == 2


TEXTS = ["beau vif", 'nul, "triste"', "fade\nlent", "vif"]


@pytest.fixture(scope="module")
def main(base, adapter):
    """``main(capsys, file, ...)``: output and errors of predict in this process."""

    def run(capfd, *words, status=0):
        words = ["predict", "--base", base, "--adapter", adapter, *words]
        found = cli.main([str(word) for word in words])
        printed = capfd.readouterr()
        assert found == status, printed.err
        return printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def labels(base, adapter):
    return fairseq_peft.Classifier.load(base, adapter).predict(TEXTS).labels


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_table_comes_back_with_the_prediction_beside(
    main, labels, tmp_path, capfd, delimiter, quoting
):
    path, out = tmp_path / f"in.{'tsv' if delimiter == chr(9) else 'csv'}", tmp_path / "out"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator="\n")
        writer.writerows([("id", "avis"), *enumerate(TEXTS)])
    main(capfd, path, "--text-column", "avis", "--out", out)
    with open(out, newline="") as file:
        header, *rows = csv.reader(file, delimiter=delimiter)
    assert header == ["id", "avis", "prediction", "probability"]
    assert [row[:3] for row in rows] == [
        [str(number), text, label] for number, (text, label) in enumerate(zip(TEXTS, labels))
    ]
    assert all(line in out.read_text() for line in path.read_text().splitlines()[1:3])


@pytest.mark.parametrize("suffix", ["jsonl", "json", "jsonl.gz"])
def test_objects_come_back_with_the_prediction_beside(main, labels, tmp_path, capfd, suffix):
    rows = [{"text": text, "stars": [1.5, None]} for text in TEXTS]
    content = json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows))
    content = content.encode()
    path = tmp_path / f"in.{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    out, _ = main(capfd, path)
    found = [json.loads(line) for line in out.splitlines()]
    assert [row.pop("prediction") for row in found] == labels
    assert all(0.3 < row.pop("probability") <= 1 for row in found) and found == rows


def test_columns_that_nobody_reads_come_back_as_they_are(main, tmp_path, capfd):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "vif", "id": "\\ud800x"}\n{"text": "vif", "id": "é"}\n')
    first, second = main(capfd, path)[0].splitlines()
    assert json.loads(first)["id"] == "\ud800x" and '"é"' in second
    refused = {
        '{"text": "vif", "prediction": "mine"}': ":2 has a column 'prediction' already",
        '{"text": "vif", "id": 1e400}': ":2 has a number that JSON cannot hold",
    }
    for line, message in refused.items():
        path.write_text('{"text": "vif"}\n' + line)
        out, errors = main(capfd, path, status=1)
        assert out == "" and message in errors.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "flags", "text"),
    [
        ("a.csv", ["--format", "jsonl"], "--format jsonl would be ignored"),
        ("a.txt", ["--text-column", "a"], "a.txt is no table"),
        ("a.csv", ["--text2-column", "text"], "--text2-column text would be ignored"),
        ("a.csv", ["--text-column", "avis"], "Expected one 'avis'"),
        ("a.csv", ["--out", "{path}"], "is the input itself"),
        ("a.csv", ["--out", "{path}/x"], "cannot be written (Not a directory)"),
        ("done.csv", [], "has a column 'prediction' already"),
        ("late.txt", ["--out", "{path}.out"], "begins as UTF-16"),
    ],
)
def test_refusals_of_tables_leave_nothing(main, tmp_path, capfd, name, flags, text):
    path = tmp_path / name
    header = "text,prediction" if name == "done.csv" else "text,id"
    wide = "vif\n".encode("utf-16") * 3 + b"x"
    path.write_bytes(wide if name == "late.txt" else f"{header}\nvif,1\n".encode())
    before = path.read_bytes()
    flags = [flag.format(path=path) for flag in flags]
    _, errors = main(capfd, path, *flags, status=1)
    assert text in errors.splitlines()[-1]
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "pack", [gzip.compress, lzma.compress, lambda data: data.decode().encode("utf-16")]
)
def test_packed_lines_and_utf_16_give_a_row_a_line(main, tmp_path, capfd, pack):
    path = tmp_path / "texts"
    path.write_bytes(b"beau vif\nnul triste\nvif\n")
    expected, _ = main(capfd, path)
    path.write_bytes(pack(path.read_bytes()))
    assert main(capfd, path) == (expected, "") and expected.count("\n") == 3


def test_a_merged_checkpoint_needs_no_adapter(base, adapter, train, data, main, tmp_path, capfd):
    """Neither that of a head with a dense layer nor that of a linear one."""
    path = tmp_path / "texts"
    path.write_bytes(b"beau vif\nnul triste\nvif\n")
    for name in ("lora", "linear"):
        folder, merged = train(name) / "adapter", tmp_path / f"{name}.pt"
        assert cli.main(["merge", str(folder), str(merged), "--base", str(base)]) == 0
        capfd.readouterr()
        words = ["predict", "--base", str(merged), "--data", str(data), str(path)]
        assert cli.main(words) == 0
        found = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
        own = fairseq_peft.Classifier.load(base, folder).predict(["beau vif", "nul triste", "vif"])
        assert [label for label, _ in found] == own.labels
        assert [float(share) for _, share in found] == pytest.approx(
            [row.probability for row in own], abs=1e-4
        )
