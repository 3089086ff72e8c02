"""docs/reference/ says what the code says. If it does not: bash scripts/docs.sh reference"""

from __future__ import annotations

import importlib.util

import pytest
from helpers import ROOT

pytest.importorskip("torch")
pytest.importorskip("fairseq")

import fairseq_peft.plugin  # noqa: E402, F401

SPEC = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "tools" / "reference.py")
reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)


@pytest.mark.parametrize("page", reference.PAGES)
def test_a_page_is_current(page):
    """If it is not: bash scripts/docs.sh reference"""
    assert (reference.FOLDER / page).read_text(encoding="utf-8") == reference.PAGES[page]()


def test_what_is_there_and_what_is_not():
    models, training = reference.model_flags(), reference.training_flags()
    assert "| `--lora-rank` | int | `8` |" in models and "`transformer_lm_METHOD`" in models
    assert "| `--eval-test` | str | `each` |" in training and "| `DATA` |" in training
    assert "--needs" not in training and "--save-dir" not in training
    commands = reference.commands()
    assert "fairseq-peft finetune [flags] (--base BASE | --from-scratch) --data DIR" in commands
    assert "| [`from-hf`](#from-hf) | Write a RoBERTa," in commands


@pytest.mark.parametrize(
    "text, shown",
    [
        ("do not begin with <s>", "do not begin with `<s>`"),
        ("f1_<class>, 2 * 3", r"f1_&lt;class>, 2 \* 3"),
        ("see --peft, or `--lora-rank 8`", "see `--peft`, or `--lora-rank 8`"),
        ("a|b", r"a\|b"),
    ],
)
def test_help_texts_are_markdown(text, shown):
    assert reference.cell(text) == shown
