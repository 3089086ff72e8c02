"""benchmarks/labels_speed.py: both ways of its table are run, and find the same."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers")

import labels_speed  # noqa: E402
from hf_families import GPT2, T5  # noqa: E402


def test_each_model_is_scored_in_both_ways(tmp_path, capsys):
    archs = {}
    for config, kind in zip((T5, GPT2), labels_speed.ARCHS.values()):
        path = tmp_path / f"{config['model_type']}.json"
        path.write_text(json.dumps({**config, "vocab_size": 1000}))
        archs[str(path)] = kind
    flags = ["--repeats", "1", "--rows", "3", "--lengths", "5", "9", "--labels", "2"]
    assert labels_speed.main(flags, archs) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(archs)
    for line, name in zip(lines[2:], archs):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:2] == [name, "2"]
        assert float(cells[4]) > 0
        assert float(cells[5]) < 1e-4
