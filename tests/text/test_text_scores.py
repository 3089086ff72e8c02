"""fairseq-peft score and text-report: BLEU, chrF and ROUGE, part by part, and the table of runs."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
import verbs
from helpers import ROOT

from fairseq_peft.report import text_runs
from fairseq_peft.text import text_scores

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

SHARED = Path(os.environ.get("FAIRSEQ_PEFT_SHARED", ROOT.parent / "shared"))
NEWS = SHARED / "data" / "orangesum" / "test.tsv.xz"

SAID = ["the old boat lies here .", "a dog ran home ."]
MEANT = ["the old boat lies there .", "a dog ran home ."]


def test_scores_are_those_of_the_packages():
    found = text_scores.score(SAID, MEANT, text_scores.METRICS)
    # 10 of 11 words, 7 of 9 pairs, 5 of 7 triples and 3 of 5 fours are right.
    assert found["bleu"] == pytest.approx(100 * (10 / 11 * 7 / 9 * 5 / 7 * 3 / 5) ** 0.25)
    # Of 5 and 4 words (no full stop) 4 and 4 are right.
    assert found["rouge1"] == pytest.approx(100 * (4 / 5 + 1) / 2)
    assert found["rouge2"] == pytest.approx(100 * (3 / 4 + 1) / 2)
    assert 80 < found["chrf"] < 100 and found["rows"] == 2
    assert found["signatures"]["bleu"].startswith("nrefs:1|case:mixed|")
    assert text_scores.score(MEANT, MEANT)["bleu"] == pytest.approx(100)


def test_parts_of_what_fairseq_generate_wrote(tmp_path, capsys):
    """Its rows are in any order; each part has scores of its own, and the JSON has them all."""
    generated = tmp_path / "generate-test.txt"
    rows = [f"S-{n}\tx\nH-{n}\t-0.1\t_x\nD-{n}\t-0.1\t{SAID[n]}\n" for n in (1, 0)]
    generated.write_text("".join(rows))
    for name, line in zip("ab", MEANT):
        (tmp_path / name).write_text(line + "\n")
    out = tmp_path / "scores.json"
    verbs.run("score", generated, f"new={tmp_path / 'a'}", tmp_path / "b", "--out", out)
    printed = capsys.readouterr().out
    assert "new" in printed and "100.00" in printed and "chrf: nrefs:1" in printed
    parts = json.loads(out.read_text())["parts"]
    assert parts["b"]["bleu"] == pytest.approx(100) and parts["new"]["bleu"] < 90

    refused = [
        ((generated, tmp_path / "a"), "has 2 texts, the references 1"),
        ((generated,), "No references"),
        ((generated, tmp_path / "a", "--metrics", "meteor"), "--metrics has 'meteor'"),
        ((tmp_path / "no", tmp_path / "a"), "cannot be read"),
        ((generated, tmp_path / "a", tmp_path / "a"), "Two references are named a"),
        ((generated, tmp_path / "a", "b="), "'b=' has no file behind its name"),
        ((generated, "--columns", "x"), "--columns without --reference-column"),
        ((generated, tmp_path / "a", "--reference-column", "x"), "ignored without --columns"),
    ]
    for words, message in refused:
        assert message in verbs.refused(capsys, "score", *words)
    generated.write_text(rows[0])
    assert "Row 0 is missing" in verbs.refused(capsys, "score", generated, tmp_path / "a")


def test_a_row_ends_at_lf_and_a_byte_order_mark_is_no_text(tmp_path, capsys):
    """Half of what Windows writes is no reason for another score, nor for another row."""
    texts, reference = tmp_path / "texts", tmp_path / "reference"
    given = [MEANT[0].replace(" lies", "\rlies"), MEANT[1]]
    texts.write_bytes("\n".join(given).encode())
    given = [MEANT[0], MEANT[1].replace(" ran", "\rran")]
    reference.write_bytes("\r\n".join([*given, ""]).encode("utf-8-sig"))
    out = tmp_path / "scores.json"
    verbs.run("score", texts, reference, "--out", out)
    (found,) = json.loads(out.read_text())["parts"].values()
    assert found["rows"] == 2 and found["bleu"] == pytest.approx(100)

    (tmp_path / "packed.gz").write_bytes(gzip.compress(reference.read_bytes()))
    verbs.run("score", texts, tmp_path / "packed.gz", "--out", out)
    assert json.loads(out.read_text())["parts"]["packed.gz"]["bleu"] == pytest.approx(100)


def test_a_path_may_hold_an_equals_sign(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    for path in (tmp_path / "texts", tmp_path / "lr=0.1" / "right"):
        path.write_text(f"{MEANT[0]}\n")
    for given, name in (("lr=0.1/right", "right"), ("x=lr=0.1/right", "x")):
        verbs.run("score", "texts", given)
        line = capsys.readouterr().out.splitlines()[1]
        assert line.split()[:3] == [name, "1", "100.00"]


@pytest.mark.skipif(not NEWS.is_file(), reason="needs ../shared/data/orangesum")
def test_published_summaries_have_their_published_scores(tmp_path):
    """The table of OrangeSum's paper, and its first sentence."""
    out = tmp_path / "scores.json"
    words = ("--columns", "barthez,mbarthez", "--reference-column", "abstract")
    verbs.run("score", NEWS, *words, "--first-sentence", "article", "--out", out)
    found = {
        name: [round(scores[kind], 2) for kind in text_scores.ROUGE]
        for name, scores in json.loads(out.read_text())["parts"].items()
    }
    assert found == {
        "barthez": [31.45, 12.77, 22.24],
        "mbarthez": [32.66, 13.74, 23.15],
        "first sentence of article": [22.46, 7.28, 15.49],
    }


def test_a_table_of_texts(tmp_path, capsys):
    table = tmp_path / "news.jsonl"
    rows = [{"mine": "A cat! And more.", "right": "a cat"}, {"mine": "dogs bark", "right": "dogs"}]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--columns", "mine", "--reference-column", "right", "--first-sentence", "mine")
    verbs.run("score", table, *words)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["mine", "2", "66.67"]
    assert lines[2].split()[-3] == f"{100 * (1 + 2 / 3) / 2:.2f}"


def test_table_of_runs(tmp_path, capsys):
    """Mean and deviation over seeds, what is kept, what the base knew and a run lost."""
    assert "no run has finished" in verbs.refused(capsys, "text-report", tmp_path)
    given = {
        "base": [(20, 80)],
        "lora": [(70, 60), (72, 62)],
        "full": [(71, 40), (73, 42)],
    }
    for method, seeds in given.items():
        for seed, (court, general) in enumerate(seeds, 1):
            run = tmp_path / method / f"seed{seed}"
            (run / "adapter").mkdir(parents=True)
            parts = {"court": {"rows": 9, "bleu": court}, "general": {"rows": 9, "bleu": general}}
            content = {"parts": parts, "signatures": {"bleu": "how"}}
            (run / "scores.json").write_text(json.dumps(content))
            (run / "checkpoint_best.pt").write_bytes(bytes(5000))
            if method == "lora":
                (run / "adapter" / "adapter.safetensors").write_bytes(bytes(2000))
            (run / "train.log").write_text(
                "num. shared model params: 1,000 (num. trained: 1,000)\n"
                # killed after an epoch, the first is gone on with
                + "epoch 001 | loss 2 | wall 3\n" * (seed == 1)
                + f"done training in {seed}.0 seconds\n"
            )
    verbs.run("text-report", tmp_path, "--command", "make it")
    printed = capsys.readouterr().out
    lora = next(line for line in printed.splitlines() if line.startswith("lora"))
    assert " ".join(lora.split()) == "lora 2 1,000 2 2 71.00 ± 1.41 61.00 ± 1.41 +19.00"
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["base", "full", "lora"]
    assert rows[2]["seconds"] == (3 + 2) / 2
    page = (tmp_path / "report.md").read_text()
    assert "| full | 2 | 1,000 | 5 |" in page and "lora -1.00" in page and "make it" in page
    (tmp_path / "lora" / "seed1" / "scores.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        text_runs.read(tmp_path)


@pytest.mark.parametrize(
    "place, scores, message",
    [
        (
            "lora/seed2",
            {"a": {"rows": 1, "chrf": 2}},
            "seed2.scores.json has a chrf.* a bleu",
        ),
        (
            "full/seed1",
            {"b": {"rows": 1, "bleu": 2}},
            "seed1.scores.json has a bleu.* b bleu",
        ),
        ("lora/seed2", {}, "is damaged"),
        ("lora/seed2", {"a": 3}, "is damaged"),
        ("lora/seed2", {"a": {"rows": 1, "bleu": "x"}}, "is damaged"),
        ("lora/seed2", {"a": {"rows": 1, "bleu": float("nan")}}, "is damaged"),
        ("lora/seed2", [], "is damaged"),
    ],
)
def test_runs_of_a_table_have_the_same_columns(tmp_path, place, scores, message):
    for run, parts in {"lora/seed1": {"a": {"rows": 1, "bleu": 2}}, place: scores}.items():
        (tmp_path / run).mkdir(parents=True)
        content = {"parts": parts, "signatures": {"bleu": "how"}}
        (tmp_path / run / "scores.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        text_runs.read(tmp_path)


def test_table_beside_what_others_wrote(tmp_path, capsys):
    """A system has scores of the first part, and nothing that a run has."""
    runs, beside = tmp_path / "runs", tmp_path / "published.json"
    for method, seen in (("base", 10), ("full", 30)):
        (runs / method / "seed1").mkdir(parents=True)
        parts = {"test": {"rows": 9, "rouge1": seen}, "old": {"rows": 9, "rouge1": 50}}
        content = {"parts": parts, "signatures": {"rouge": "how"}}
        (runs / method / "seed1" / "scores.json").write_text(json.dumps(content))
    words = ("text-report", runs, "--beside", beside)
    assert "cannot be read" in verbs.refused(capsys, *words)
    beside.write_text("[]")
    assert "is no file of fairseq-peft score" in verbs.refused(capsys, *words)
    beside.write_text(json.dumps({"parts": {"theirs": {"rows": 9, "bleu": 31.4}}}))
    assert "theirs has rows, bleu. The runs have" in verbs.refused(capsys, *words)
    beside.write_text(json.dumps({"parts": {"theirs": {"rows": 9, "rouge1": 31.4}}}))
    assert not (runs / "report.md").exists()
    verbs.run(*words)
    printed = capsys.readouterr().out
    assert "theirs - - - - 31.40 - -" in " ".join(printed.split())
    assert "beside full" not in printed  # no method is there to hold against it
    assert json.loads((runs / "report.json").read_text())["rows"][2]["num_seeds"] == 0
