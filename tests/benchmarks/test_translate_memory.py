"""benchmarks/translate_memory.py: a long dictionary costs less than the logits of all tokens."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("fairseq")


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_there_is_no_tensor_of_all_tokens_times_all_words(tmp_path, capsys):
    import translate_memory

    sizes = ["--layers", "1", "--embed-dim", "16", "--ffn-dim", "16", "--heads", "2"]
    flags = [*sizes, "--batch-size", "64", "--length", "64", "--dictionaries", "20000"]
    flags += [
        "--only",
        "ours-lora-fp32-20000,ours-lora-fp32-whole-20000",
        "--repeats",
        "1",
        "--threads",
        "1",
    ]
    assert translate_memory.main([*flags, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "translate_memory.json").read_text())["runs"]
    parts, whole = (found[f"ours-lora-fp32{way}-20000"]["1"] for way in ("", "-whole"))
    logits = 4 * 64 * 64 * 20000
    # Both are far from half of it on either side.
    assert parts["peak_bytes"] < 2 * logits < whole["peak_bytes"]
    assert parts["weights_bytes"] == whole["weights_bytes"]
    assert "| ours-lora-fp32-20000 " in capsys.readouterr().out
