"""`fairseq-peft prepare-data` and scripts/prepare_data.sh: ids, order, and all or nothing."""

import argparse
import csv
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import moments
import pytest

from fairseq_peft import cli, folders
from fairseq_peft.commands import prepare_data
from fairseq_peft.text import bpe
from fairseq_peft.text.binarised import read_dictionary, read_tokens

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/prepare_data.sh"
WORDS = "le la les un une livre film histoire bon beau mauvais triste long drôle et mais pas très"


@pytest.fixture
def raw(tmp_path):
    """Labels 10 and 9 (10 is first by frequency and by alphabet), a lone CR, U+2028 and U+00A0."""
    directory = tmp_path / "raw dir"
    directory.mkdir()
    words = WORDS.split()
    for number, (split, size) in enumerate({"train": 40, "valid": 9, "test": 7}.items()):
        texts = [
            " ".join(words[(i * 7 + j * (i + number + 1)) % len(words)] for j in range(3 + i % 5))
            for i in range(size)
        ]
        texts[1] = "bon\rlivre\u2028et\xa0film"
        labels = ["9" if i % 3 == 0 else "10" for i in range(size)]
        (directory / f"{split}.review").write_bytes("".join(t + "\n" for t in texts).encode())
        (directory / f"{split}.label").write_text("".join(x + "\n" for x in labels))
    return directory


def prepare(*args) -> int:
    return cli.main(["prepare-data", *map(str, args)])


def left_behind(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != "raw dir")


def write_mmap(prefix: Path, tokens: list[int], sizes: list[int]) -> None:
    """What fairseq's IndexedDataset writes for fewer than 65,500 types."""
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQ", 1, 8, len(sizes))
    prefix.with_suffix(".idx").write_bytes(header + struct.pack(f"<{len(sizes)}i", *sizes))
    prefix.with_suffix(".bin").write_bytes(struct.pack(f"<{len(tokens)}H", *tokens))


def quick_preprocess(text_dir, name, splits, dest, srcdict):
    """Stands in for fairseq-preprocess, which takes seconds; the script test runs the real one."""
    dest.mkdir()
    shutil.copyfile(srcdict, dest / "dict.txt")
    ids = {word: number for number, word in enumerate(read_dictionary(srcdict))}
    for split in splits:
        rows = (text_dir / f"{split}.{name}").read_bytes().decode().split("\n")[:-1]
        rows = [[ids.get(word, 3) for word in row.split()] + [2] for row in rows]
        write_mmap(dest / split, sum(rows, []), [len(row) for row in rows])


def broken_preprocess(text_dir, name, splits, dest, srcdict):
    raise RuntimeError("disk full")


@pytest.mark.end_to_end
def test_script_on_a_small_data_set(python, raw, tmp_path):
    import sentencepiece

    environment = {
        **os.environ,
        "VOCAB_SIZE": "40",
        "DATA_BIN": str(tmp_path / "data bin"),
        "PYTHON": python,
        "DROP_DUPLICATES": "train",
    }
    command = ["bash", str(SCRIPT), raw.name, "small"]
    first = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    dest = tmp_path / "data bin/small"
    assert left_behind(tmp_path / "data bin") == ["small"]
    assert left_behind(dest) == [
        "dict.txt",
        "input0",
        "label",
        "labels.txt",
        "raw",
        "sentencepiece.bpe.model",
        "stats.json",
    ]

    # The classes: by value, whatever their frequency, and no madeupword beside them.
    assert (dest / "labels.txt").read_text() == "9\n10\n"
    label_words = (dest / "label/dict.txt").read_text().split("\n")
    assert [line.split(" ")[0] for line in label_words] == ["9", "10", ""]

    # The ids, against sentencepiece itself; the rows, against the text.
    processor = sentencepiece.SentencePieceProcessor(
        model_file=str(dest / "sentencepiece.bpe.model")
    )
    assert processor.get_piece_size() == 40
    assert len(read_dictionary(dest / "dict.txt")) == 42
    assert (dest / "dict.txt").read_bytes() == (dest / "input0/dict.txt").read_bytes()
    stats = json.loads((dest / "stats.json").read_text())
    assert stats["vocabulary_rows"] == 42 and stats["ids_are_pieces_plus_1"] is True
    num_rows = {"train": 40 - stats["dropped_train_rows"], "valid": 9, "test": 7}
    assert stats["dropped_train_rows"] >= 1 and stats["duplicates"]["test_in_train"]["texts"] >= 1
    for split, size in num_rows.items():
        texts = (dest / f"raw/{split}.review").read_bytes().decode().split("\n")[:-1]
        labels = (dest / f"raw/{split}.label").read_text().split()
        tokens, offsets = read_tokens(dest / "input0" / split)
        classes, _ = read_tokens(dest / "label" / split)
        assert (
            len(texts) == len(labels) == len(offsets) - 1 == size == stats["splits"][split]["rows"]
        )
        assert classes.reshape(-1, 2).tolist() == [[4 + (x == "10"), 2] for x in labels]
        for text, start, end in zip(texts, offsets, offsets[1:]):
            ids = [i + 1 if i >= 3 else 3 for i in processor.encode(text)]
            assert tokens[start:end].tolist() == [*ids, 2]
        assert stats["splits"][split]["tokens"] == len(tokens) - size
    assert "bon livre et\xa0film" in (dest / "raw/test.review").read_text()
    assert "line breaks replaced: 6" in first.stderr
    assert "dropped" in first.stderr and "also occur in train" in first.stderr

    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and "is finished already" in again.stderr


def test_running_again(raw, tmp_path, monkeypatch, capfd, caplog):
    """Nothing to do; with another setting or other data a refusal; with --force a new folder."""
    monkeypatch.setattr(prepare_data, "preprocess", quick_preprocess)
    caplog.set_level("INFO")
    dest = tmp_path / "dest"
    assert prepare(raw, dest, "--vocab-size", 35) == 0
    assert "is finished already" not in caplog.text
    before = (dest / "stats.json").stat().st_mtime_ns
    shutil.copytree(raw, tmp_path / "elsewhere")
    assert prepare(tmp_path / "elsewhere", dest, "--vocab-size", 35) == 0
    assert "is finished already" in caplog.text
    assert prepare(raw, dest, "--vocab-size", 30) == 1
    assert "other data or settings (vocab_size)" in capfd.readouterr().err
    (tmp_path / "elsewhere/test.review").write_text("livre\n" * 7)
    assert prepare(tmp_path / "elsewhere", dest, "--vocab-size", 35) == 1
    assert "other data or settings (raw_sha256)" in capfd.readouterr().err
    assert (dest / "stats.json").stat().st_mtime_ns == before
    assert prepare(raw, dest, "--vocab-size", 30, "--force") == 0
    assert json.loads((dest / "stats.json").read_text())["vocabulary_rows"] == 32
    assert left_behind(tmp_path) == ["dest", "elsewhere"]


def test_a_reader_sees_whole_folders_only(raw, tmp_path, monkeypatch):
    """At every moment of --force, and so after a kill at any."""
    monkeypatch.setattr(prepare_data, "preprocess", quick_preprocess)
    dest = tmp_path / "dest"

    def content():
        folder = folders.current(dest)
        files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in files.items()}

    assert prepare(raw, dest, "--vocab-size", 35) == 0
    old, seen = content(), []
    with moments.at_each(lambda: seen.append(content())):
        assert prepare(raw, dest, "--vocab-size", 30, "--force") == 0
    versions = [old, content()]
    numbers = [versions.index(found) for found in seen]  # of another there is none
    assert numbers == sorted(numbers) and {*numbers} == {0, 1}


def test_a_default_vocabulary_that_is_too_large_is_lowered_and_said(
    raw, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(prepare_data, "preprocess", quick_preprocess)
    caplog.set_level("INFO")
    (raw / "valid.label").write_text("10\n" * 9)
    assert prepare(raw, tmp_path / "dest") == 0
    assert "warning: 1 classes have no row in valid (9)" in caplog.text
    stats = json.loads((tmp_path / "dest/stats.json").read_text())
    most = stats["notes"]["vocabulary_lowered_to"]
    assert stats["vocabulary_rows"] == most + 2 < 100
    assert f"vocabulary lowered to: {most}" in caplog.text
    assert prepare(raw, tmp_path / "dest") == 0
    assert "is finished already" in caplog.text


def test_a_table_with_its_columns_named(raw, tmp_path, monkeypatch, caplog):
    """The same rows as of files of lines give the same files."""
    monkeypatch.setattr(prepare_data, "preprocess", quick_preprocess)
    caplog.set_level("INFO")
    assert prepare(raw, tmp_path / "lines", "--vocab-size", 35) == 0
    with open(tmp_path / "data.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["note", "id", "avis", "split"])
        for split in ("train", "valid", "test"):
            texts = (tmp_path / f"lines/raw/{split}.review").read_text().splitlines()
            labels = (tmp_path / f"lines/raw/{split}.label").read_text().splitlines()
            writer.writerows((label, 0, text, split) for text, label in zip(texts, labels))
    flags = ["--text-column", "avis", "--label-column", "note", "--vocab-size", 35]
    assert prepare(tmp_path / "data.csv", tmp_path / "table", *flags) == 0
    for name in ("dict.txt", "labels.txt", "raw/train.review", "input0/test.bin", "label/test.bin"):
        assert (tmp_path / "table" / name).read_bytes() == (tmp_path / "lines" / name).read_bytes()
    assert prepare(tmp_path / "data.csv", tmp_path / "other", *flags[:2]) == 1


def test_given_model_and_dictionary(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_data, "preprocess", quick_preprocess)
    assert prepare(raw, tmp_path / "one", "--vocab-size", 35) == 0
    model, words = tmp_path / "one/sentencepiece.bpe.model", tmp_path / "one/dict.txt"
    lines = words.read_text().splitlines()
    other = tmp_path / "other.txt"
    other.write_text("\n".join(lines[::-1]) + "\n")
    for directory in (raw, tmp_path / "one"):  # read-only files, as in a shared folder
        for path in directory.rglob("*"):
            path.chmod(0o444 if path.is_file() else 0o755)
    assert prepare(raw, tmp_path / "two", "--spm", model, "--dict", other) == 0
    stats = json.loads((tmp_path / "two/stats.json").read_text())
    assert stats["ids_are_pieces_plus_1"] is False
    assert (tmp_path / "two/dict.txt").read_bytes() == other.read_bytes()
    assert prepare(raw, tmp_path / "two", "--spm", model, "--force") == 0
    assert (tmp_path / "two/dict.txt").read_bytes() == words.read_bytes()


def test_pairs_get_two_inputs(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_data, "preprocess", quick_preprocess)
    for split in ("train", "valid", "test"):
        texts = (raw / f"{split}.review").read_bytes().split(b"\n")[:-1]
        (raw / f"{split}.review2").write_bytes(b"".join(text + b"\n" for text in texts[::-1]))
    dest = tmp_path / "pairs"
    assert prepare(raw, dest, "--vocab-size", 35) == 0
    one, _ = read_tokens(dest / "input0/test")
    two, _ = read_tokens(dest / "input1/test")
    assert sorted(one) == sorted(two) and one.tolist() != two.tolist()
    assert (dest / "raw/test.review2").is_file()
    assert json.loads((dest / "stats.json").read_text())["max_tokens"] == 252


def test_failure_leaves_nothing(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_data, "preprocess", broken_preprocess)
    with pytest.raises(RuntimeError, match="disk full"):
        prepare(raw, tmp_path / "dest", "--vocab-size", 35)
    assert left_behind(tmp_path) == []


def test_failure_with_force_keeps_what_was_there(raw, tmp_path, monkeypatch):
    dest = tmp_path / "dest"
    dest.mkdir()
    (dest / "stats.json").write_text('{"settings": {}}')
    monkeypatch.setattr(prepare_data, "preprocess", broken_preprocess)
    with pytest.raises(RuntimeError, match="disk full"):
        prepare(raw, dest, "--vocab-size", 35, "--force")
    assert left_behind(tmp_path) == ["dest"] and left_behind(dest) == ["stats.json"]


@pytest.mark.parametrize("damage", ["row", "token"])
def test_binarised_data_that_differs_from_the_text_is_refused(tmp_path, damage):
    """The negative control of the comparison that every run ends with."""
    rows, words = [["b"], ["a", "c"]], ["<s>", "<pad>", "</s>", "<unk>", "a", "b"]
    tokens, sizes = [5, 2, 4, 3, 2], [2, 3]
    write_mmap(tmp_path / "x", tokens, sizes)
    prepare_data.compare(tmp_path / "x", rows, words)
    damaged = {"row": (tokens, [3, 2]), "token": ([4, 2, 5, 3, 2], sizes)}[damage]
    write_mmap(tmp_path / "x", *damaged)
    with pytest.raises(RuntimeError, match="is not what the text says"):
        prepare_data.compare(tmp_path / "x", rows, words)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dict", "d"], "--dict without --spm"),
        (["--spm", "s", "--vocab-size", "35"], "--vocab-size has no effect with --spm"),
        (["--spm", "s", "--spm-text", "t"], "--spm-text has no effect with --spm"),
        (["--seed", "2"], "--seed has no effect"),
        (["--vocab-size", "4"], "--vocab-size 4: expected at least 16"),
        (["--max-positions", "2"], "--max-positions 2: expected at least 8"),
        (["--spm", "nothing"], "nothing does not exist"),
        (["--vocab-size", "9000"], "Vocabulary size too high"),
        (["--spm", "{raw}/train.label"], "is not a sentencepiece model"),
    ],
)
def test_bad_options_are_one_sentence_and_leave_nothing(raw, tmp_path, capfd, options, message):
    options = [option.format(raw=raw) for option in options]
    assert prepare(raw, tmp_path / "dest", *options) == 1
    error = capfd.readouterr().err
    assert message in error and "Traceback" not in error
    assert left_behind(tmp_path) == []


def test_dest_that_somebody_else_made_is_left_alone(raw, tmp_path, capfd):
    dest = tmp_path / "dest"
    dest.mkdir()
    (dest / "thesis.tex").write_text("x")
    assert prepare(raw, dest, "--vocab-size", 35, "--force") == 1
    assert "this command did not make it" in capfd.readouterr().err
    assert left_behind(dest) == ["thesis.tex"]


def test_bad_data_leaves_nothing(raw, tmp_path, capfd):
    (raw / "valid.review").write_bytes(b"a\n\xff\n")
    assert prepare(raw, tmp_path / "dest") == 1
    assert "valid.review:2 is not UTF-8: byte 0xff" in capfd.readouterr().err
    assert left_behind(tmp_path) == []


def test_paths_may_hold_any_bytes(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_data, "preprocess", quick_preprocess)
    odd = tmp_path / os.fsdecode(b"r\xff")
    raw.rename(odd)
    assert prepare(odd, odd / "dest", "--vocab-size", 35) == 0
    assert json.loads((odd / "dest" / "stats.json").read_text())["raw"] == str(odd)
    assert prepare(odd, odd / "dest", "--vocab-size", 35) == 0  # it is finished


def test_text_without_tokens_is_named(raw, tmp_path, capfd):
    lines = (raw / "test.review").read_bytes().split(b"\n")
    lines[3] = "\u200b\u200b".encode()  # sentencepiece removes zero-width spaces
    (raw / "test.review").write_bytes(b"\n".join(lines))
    assert prepare(raw, tmp_path / "dest", "--vocab-size", 35) == 1
    assert "test.{review,label}:4: '\\u200b\\u200b' has no token left" in capfd.readouterr().err
    assert left_behind(tmp_path) == []


def shell(*args, **environment):
    return subprocess.run(
        ["bash", str(SCRIPT), *args],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        cwd="/",
    )


def test_script_help():
    done = shell("--help")
    assert done.returncode == 0 and "Usage: scripts/prepare_data.sh" in done.stdout
    knobs = ["SPM", "DICT", "VOCAB_SIZE", "SPM_TEXT", "DROP_DUPLICATES", "MAX_POSITIONS", "FORCE=1"]
    assert all(
        knob in done.stdout for knob in [*knobs, "SEED, VALID_SHARE, TEST_SHARE", "DATA_BIN"]
    )


def test_script_dry_run_prints_the_command_and_writes_nothing(tmp_path):
    done = shell(
        "--dry-run",
        "/data/my reviews.tsv",
        DATA_BIN=str(tmp_path / "bin"),
        DROP_DUPLICATES="train",
        SEED="3",
        FORCE="1",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(
        f"-m fairseq_peft.cli prepare-data /data/my\\ reviews.tsv {tmp_path}/bin/my\\ reviews "
        "--drop-duplicates train --seed 3 --force"
    )
    assert left_behind(tmp_path) == []


def test_script_takes_the_columns_of_a_packed_table(tmp_path):
    columns = {"TEXT_COLUMN": "my text", "TEXT2_COLUMN": "b", "LABEL_COLUMN": "3", "HEADER": "0"}
    done = shell("--dry-run", "/data/a.csv.gz", DATA_BIN=str(tmp_path), **columns)
    assert done.stdout.strip().endswith(
        f"{tmp_path}/a --text-column my\\ text --text2-column b --label-column 3 --no-header"
    )
    assert "--header" in shell("--dry-run", "a.csv", HEADER="1").stdout
    given = shell("--dry-run", "a.csv", BPE="bert", BPE_DIR="my files", BPE_CASED="1").stdout
    assert given.strip().endswith("--bpe bert --bpe-dir my\\ files --bpe-cased")
    assert "expected 0 or 1" in shell("--dry-run", "a.csv", HEADER="yes").stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "expected RAW [NAME]"),
        (["a", "b", "c"], "expected RAW [NAME]"),
        (["a", "b/c"], "'b/c' is not a name"),
        (["."], "'.' is not a name"),
        (["a", "--", "--lr", "1"], "nothing goes after --"),
        (["--frobnicate"], "unknown option"),
    ],
)
def test_script_refusals(args, message):
    done = shell(*args)
    assert done.returncode == 1 and message in done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_script_shellcheck():
    done = subprocess.run(
        ["shellcheck", "-x", str(SCRIPT)], capture_output=True, cwd=ROOT / "scripts"
    )
    assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize("page", ["README.md", "docs/checkpoints.md"])
def test_commands_of_the_pages_are_understood(page):
    """The knobs of each become flags that the verb takes."""
    text = (ROOT / page).read_text(encoding="utf-8")
    commands = re.findall(r"^ *((?:[A-Z_]+=\S+ )*)bash scripts/prepare_data.sh (.+)$", text, re.M)
    assert len(commands) > 1
    for knobs, words in commands:
        given = dict(knob.split("=", 1) for knob in knobs.split())
        done = shell("--dry-run", *words.split(), **given)
        assert done.returncode == 0, done.stderr
        parser = argparse.ArgumentParser(exit_on_error=False)
        prepare_data.add_arguments(parser)
        *_, flags = done.stdout.strip().partition(" prepare-data ")
        parsed = parser.parse_args(shlex.split(flags))
        assert bpe.given(parsed)
