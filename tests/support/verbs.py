"""Verbs of ``fairseq-peft`` in the process of the tests."""

from __future__ import annotations

from fairseq_peft import cli


def run(*words):
    """The verb ends well."""
    assert cli.main([str(word) for word in words]) == 0


def refused(capsys, *words):
    """The one sentence with which the verb refuses."""
    assert cli.main([str(word) for word in words]) == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert printed.out == "" and line.startswith(f"fairseq-peft {words[0]}: error: ")
    return line
