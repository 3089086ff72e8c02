"""What --help prints: within the terminal's width, and whole."""

import pytest

from fairseq_peft.cli import build_parser

PARSER = build_parser()
VERBS = PARSER._subparsers._group_actions[0].choices


@pytest.mark.parametrize("verb", VERBS)
def test_paragraphs_keep_to_the_width(verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = VERBS[verb].format_help()
    wide = [line for line in text.splitlines() if len(line) > 80 and not line.startswith("    ")]
    assert wide == []
    assert "``" not in text  # Markdown's, which the other texts do not have


def test_what_is_indented_stays_as_it_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    text = VERBS["combine"].format_help()
    assert (
        "    fairseq-peft combine runs/a/adapter=0.5 runs/b/adapter=0.5 --how svd --out both\n"
        in text
    )
    assert "A weight is 1 where none is given. The result is an" in " ".join(text.split())


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_says_what_it_is(verb):
    """Not its default alone."""
    helps = [(action.dest, action.help or "") for action in VERBS[verb]._actions]
    bare = [dest for dest, text in helps if text.startswith(("(", "%(default)s", "the same"))]
    assert bare == []
