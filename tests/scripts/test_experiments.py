"""The experiments with T5, BLOOM and GPT-2: each from its data to its table, tiny; and what is
read and made on the way."""

from __future__ import annotations

import json
import os
import random
import re
import sys
from dataclasses import replace

import pytest
from helpers import ROOT

from fairseq_peft.errors import InputError

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")
sys.path.append(str(ROOT / "experiments"))

import bloom_instructions as bloom  # noqa: E402
import gpt2_summarization as gpt2  # noqa: E402
import t5_sentiment as t5  # noqa: E402

ONE = ["--tiny", "--seeds", "1", "--jobs", "1"]
GOOD = "a fine film with warm and clever people, good"
BAD = "a dull film with cold and empty people, bad"


def write_tree(folder, number=20):
    """Reviews as IMDB publishes them."""
    for split in ("train", "test"):
        for label, text in (("pos", GOOD), ("neg", BAD)):
            place = folder / split / label
            place.mkdir(parents=True)
            for i in range(number):
                words = f"{i} times seen<br />{text} " * 3
                (place / f"{i}.txt").write_text(words, encoding="utf-8")
    return folder


def read_table(out):
    return json.loads((out / "table.json").read_text(encoding="utf-8"))


@pytest.mark.end_to_end
def test_t5_from_reviews_to_the_table(tmp_path, capsys):
    setting = replace(t5.TINY, rows=(24, 8, 8), epochs=1, pretraining=2, words=24)
    data, out = write_tree(tmp_path / "imdb"), tmp_path / "out"
    words = [*ONE, "--data", str(data), "--out", str(out), "--only", "ours-full,ours-lora-8"]
    t5.main(words, setting)
    found = read_table(out)
    assert set(found) == {"ours-full", "ours-lora-8", "tfidf-cut", "tfidf-whole"}
    assert found["tfidf-whole"]["test_accuracies"] == [1.0]
    base, lora = found["ours-full"], found["ours-lora-8"]
    added = lora["total_parameters"] - base["total_parameters"]
    # Query and value of three blocks of attention.
    assert lora["trainable_parameters"] == added == 6 * 8 * 2 * t5.CONFIG["d_model"]
    printed = capsys.readouterr().out
    assert "| lora 8, ours |" in printed and "TF-IDF" in printed
    t5.main(words, setting)  # what is done is kept
    assert "seed1" not in capsys.readouterr().out
    with pytest.raises(InputError, match=r"has runs of another setting \(epochs\)"):
        t5.main([*words, "--epochs", "2"], setting)


@pytest.mark.parity
def test_rows_of_libraries_train_as_many_parameters(tmp_path):
    """PEFT's and AdapterHub's rows, made in their own environments, beside ours."""
    pythons = []
    for flag, library in (("--peft-python", "PEFT"), ("--adapters-python", "ADAPTERS")):
        python = os.environ.get(f"FAIRSEQ_PEFT_{library}_PYTHON")
        if not python:
            pytest.skip(f"FAIRSEQ_PEFT_{library}_PYTHON is not set: scripts/test.sh parity does it")
        pythons += [flag, python]
    setting = replace(t5.TINY, rows=(24, 8, 8), epochs=1, pretraining=2, words=24)
    names = {"PEFT": ("lora-8", "prompt-10"), "AdapterHub": ("adapter-8",)}
    pairs = [(by, row) for by in names for row in names[by]]
    rows = [f"{by}-{row}" for library, row in pairs for by in ("ours", library)]
    data, out = write_tree(tmp_path / "imdb"), tmp_path / "out"
    words = [*ONE, *pythons, "--data", str(data), "--out", str(out), "--only", ",".join(rows)]
    t5.main(words, setting)
    found = read_table(out)
    for ours, theirs in zip(rows[::2], rows[1::2]):
        for count in ("trainable_parameters", "total_parameters"):
            assert found[ours][count] == found[theirs][count], (ours, theirs)


@pytest.mark.end_to_end
def test_bloom_from_generated_instructions_to_curve_and_picture(tmp_path):
    setting = replace(bloom.TINY, rows=(160, 16, 16), epochs=1, pretraining=10)
    bloom.main([*ONE, "--out", str(tmp_path)], setting)
    (points,) = read_table(tmp_path)["curves"].values()
    assert [update for update, _ in points] == [5, 10]
    assert points[1][1] < points[0][1]
    assert (tmp_path / "loss.png").is_file() and (tmp_path / "loss.svg").is_file()
    assert list(tmp_path.glob("tensorboard/seed1/train_inner/events*"))


@pytest.mark.end_to_end
def test_gpt2_from_news_to_the_table(tmp_path):
    data, out = tmp_path / "news", tmp_path / "out"
    data.mkdir()
    for split in gpt2.SPLITS:
        rows = [
            {
                "article": f"News {i} of {split}. The town has a new bridge over its river. " * 3,
                "highlights": "A new bridge.",
            }
            for i in range(16)
        ]
        gpt2.jobs.write_rows(data / f"{split}.jsonl", rows)
    setting = replace(gpt2.TINY, epochs=1, pretraining=4, rows=(16, 4, 4), max_summary=12)
    words = [*ONE, "--data", str(data), "--target", "highlights", "--out", str(out)]
    gpt2.main(words, setting)
    found = read_table(out)
    runs = {name: one for name, (one,) in found["runs"].items()}
    assert set(runs) == set(gpt2.ROWS)
    width = gpt2.CONFIG["n_embd"]
    assert runs["prompt"]["trainable_parameters"] == 6 * width
    assert runs["lora"]["trainable_parameters"] == 2 * 128 * (width + 3 * width)
    # The mistake counts every place but the first, of each of the 4 rows.
    places = json.loads((out / "data-mistake" / "test.jsonl").read_text().splitlines()[0])
    assert places["answer"].endswith(gpt2.END)
    assert runs["lora-mistake"]["own_test"]["loss"] != runs["lora-mistake"]["test"]["loss"]
    assert 0 <= runs["lora"]["test"]["rougeL"] <= 1
    assert found["lead"]["rougeL"] < 1


def test_span_corruption_asks_for_what_it_leaves_out():
    """What is asked for, put back in its places, is the text."""
    for seed in range(20):
        words = [f"w{i}" for i in range(20 + seed)]
        row = t5.span_corruption(words, random.Random(seed))
        spans = re.split(r"(<extra_id_\d+>)", row["target"])[1:]
        given = row["input"]
        for mark, span in zip(spans[::2], spans[1::2]):
            given = given.replace(mark, span.strip())
        assert given.split() == words
        assert spans[-2] not in row["input"] and not spans[-1]  # the last mark ends the target


def test_reviews_come_as_a_tree_or_a_table(tmp_path):
    found = t5.read_reviews(write_tree(tmp_path / "imdb", 5))
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 8,
        "valid": 2,
        "test": 10,
    }
    assert all("fine" in text for text, label in found["test"] if label)
    assert not any("<br" in text for text, _ in found["test"])
    lines = [f'"{GOOD} {i}",positive\n"{BAD} {i}",negative\n' for i in range(20)]
    table = tmp_path / "IMDB.csv"
    table.write_text("review,sentiment\n" + "".join(lines), encoding="utf-8")
    found = t5.read_reviews(table)
    assert sum(map(len, found.values())) == 40 and len(found["test"]) == 20
    table.write_text("review,sentiment\n" + "x y,good\nz,bad\n" * 20, encoding="utf-8")
    with pytest.raises(InputError, match="'(good|bad)' is none of neg, pos"):
        t5.read_reviews(table)


def test_instructions_come_as_json_lines(tmp_path):
    path = tmp_path / "alpaca.jsonl"
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (found,) = bloom.read_pairs(path)
    assert found == {"prompt": "### Instruction: Add.\n1 2\n### Answer:", "answer": "3"}
    path.write_text("{}\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 1: expected JSON with instruction and output"):
        bloom.read_pairs(path)


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (t5.main, [], "Give --tiny or --small or --model, the last with the folder"),
        (t5.main, ["--tiny", "--data", "nowhere"], "nowhere does not exist: the reviews of IMDB"),
        (t5.main, ["--tiny", "--only", "ours-full,mine"], "mine is no row"),
        (bloom.main, [], "Give --tiny or --model, the last with the folder"),
        (gpt2.main, ["--tiny", "--data", "nowhere"], "nowhere has no train.jsonl"),
    ],
)
def test_what_is_missing_is_one_sentence(main, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        main([*words, "--out", "out"])
