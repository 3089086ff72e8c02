"""``fairseq-peft methods``: the table is what the method files say, and docs/methods.md has it."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from helpers import ROOT

from fairseq_peft import cli, methods
from fairseq_peft.commands.methods import BEGIN, END, STARTS_AS_BASE
from fairseq_peft.methods import rate_text


def run(capsys, *words):
    assert cli.main(["methods", *words]) == 0
    return capsys.readouterr().out


def test_json_is_what_the_methods_say(capsys):
    found = {row["name"]: row for row in json.loads(run(capsys, "--json"))}
    assert list(found) == methods.available()
    for name, row in found.items():
        method = methods.get(name)
        assert row["summary"] == method.summary and row["paper"] == method.paper
        assert row["mergeable"] == method.mergeable
        assert row["starts_as_base"] == STARTS_AS_BASE[method().logits_at_start]
        assert row["learning_rates"] == list(method.learning_rates)
        assert [knob["default"] for knob in row["knobs"]] == [
            knob.default for knob in fields(method.Config)
        ]
    knobs = {knob["flag"]: knob for knob in found["lora"]["knobs"]}
    assert knobs["--lora-rank"]["default"] == 8 and knobs["--lora-rank"]["type"] == "int"
    assert knobs["--lora-alpha"]["shown_default"] == "16"
    assert "--peft-targets" in knobs


def test_parameters_are_those_of_params(capsys):
    found = {row["name"]: row["parameters"] for row in json.loads(run(capsys, "--json"))}
    assert cli.main(["params", "--arch", "roberta_small", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)["methods"]
    assert found == {row["method"]: row["trainable_without_head"] for row in counted}
    assert found["lora"] == 65_536 and found["full"] == 22_829_056


def test_every_method_says_what_a_table_needs():
    for name in methods.available():
        method = methods.get(name)
        assert method.name == name
        assert method.summary and "\n" not in method.summary and len(method.summary) <= 80
        assert method.paper == "-" or "arXiv:" in method.paper, name
        assert list(method.learning_rates) == sorted(method.learning_rates) and min(
            method.learning_rates
        )
        for knob in fields(method.Config):
            assert knob.metadata["help"], (name, knob.name)


def test_text(capsys):
    out = run(capsys)
    for name in methods.available():
        method = methods.get(name)
        assert f"\n{name}: {method.paper}\n" in out + "\n"
        (row,) = [line for line in out.splitlines() if line.split()[:1] == [name]]
        assert row.endswith(method.summary)
        assert " ".join(map(rate_text, method.learning_rates)) in row
        assert ("  yes  " in row) or not method.mergeable
    assert max(map(len, out.splitlines())) <= 150
    assert not [line for line in out.splitlines() if line.startswith("  ") and line.endswith("-")]


def test_text_of_one_method(capsys):
    out = run(capsys, "lora")
    assert "65,536" in out and "arXiv:2106.09685" in out and "--lora-rank" in out
    assert "prompt" not in out


def test_markdown_has_a_row_a_method(capsys):
    header, rule, *rows = run(capsys, "--markdown").splitlines()
    assert len(rows) == len(methods.available())
    columns = header.count("|")
    assert rule.count("|") == columns
    assert all(row.replace(r"\|", "").count("|") == columns for row in rows)
    (lora,) = [row for row in rows if row.startswith("| `lora` |")]
    assert "`--lora-rank` (8)" in lora and "65,536" in lora and "5e-4 1e-3 2e-3" in lora


def test_rates(capsys):
    assert run(capsys, "--rates", "lora") == "5e-4 1e-3 2e-3\n"
    assert run(capsys, "--rates", "full") == "5e-5 1e-4 2e-4\n"
    assert run(capsys, "--rates", "prompt+lora") == run(capsys, "--rates", "lora")
    for name in methods.available():
        words = run(capsys, "--rates", name).split()
        assert [float(word) for word in words] == list(methods.get(name).learning_rates)


@pytest.mark.parametrize(
    "value, word", [(0.001, "1e-3"), (1.5e-4, "1.5e-4"), (0.1, "1e-1"), (3.0, "3e0")]
)
def test_rates_are_exact(value, word):
    assert rate_text(value) == word and float(word) == value


def test_the_page_has_the_table(capsys):
    """If it does not: fairseq-peft methods --write docs/methods.md"""
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    table = text.partition(BEGIN + "\n")[2].partition(END)[0]
    assert table == run(capsys, "--markdown")


def test_write_replaces_the_table_and_nothing_else(capsys, tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"before\n\n{BEGIN}\n| old |\n{END}\n\nafter\n")
    assert run(capsys, "--write", str(path)) == ""
    expected = f"before\n\n{BEGIN}\n{run(capsys, '--markdown')}{END}\n\nafter\n"
    assert path.read_text() == expected
    run(capsys, "--write", str(path))
    assert path.read_text() == expected


@pytest.mark.parametrize(
    "words, message",
    [
        (["loar"], "--peft 'loar' is unknown"),
        (["--rates", "loar"], "--peft 'loar' is unknown"),
        (["--rates", "lora,full"], "full cannot be combined"),
        (["lora", "--rates", "lora"], "'lora' would be ignored beside --rates"),
        (["--write", "nowhere.md"], "--write nowhere.md cannot be read"),
    ],
)
def test_bad_input(capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["methods", *words]) == 1
    assert message in capsys.readouterr().err


def test_write_needs_the_markers(capsys, tmp_path):
    (tmp_path / "page.md").write_text("no table\n")
    assert cli.main(["methods", "--write", str(tmp_path / "page.md")]) == 1
    assert "there is no table to replace" in capsys.readouterr().err
    assert (tmp_path / "page.md").read_text() == "no table\n"


def test_help_has_a_whole_sentence_of_each_command():
    """Where the first one of its docstring goes over two lines, too."""
    text = " ".join(cli.build_parser().format_help().split())
    assert "onnx for ONNX Runtime." in text and "loads without this plugin." in text
