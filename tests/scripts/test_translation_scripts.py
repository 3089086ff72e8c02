"""The scripts of translation, from data to table, with few updates on little data."""

import shlex
import shutil

import pytest
from helpers import ROOT
from scripting import run_script

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def test_quickstart(tmp_path, python):
    """It ends with a table; a failed run is told, with its end, and what is done is kept."""
    script = ROOT / "scripts" / "quickstart_translation.sh"
    knobs = {
        **{"WORK": str(tmp_path / "work"), "PYTHON": python, "FORK": "0", "JOBS": "2"},
        **{"GENERAL": "150", "TEST": "4", "VOCAB_SIZE": "150", "UPDATES_BASE": "2"},
        **{"UPDATES": "10", "SEEDS": "1", "BEAM": "1"},
    }
    done = run_script(script, cwd=tmp_path, **knobs, METHODS="lora nothing")
    assert done.returncode == 1 and not (tmp_path / "work").exists()
    assert "METHODS has 'nothing', for which there is no rate: give LR_NOTHING" in done.stderr
    knobs["METHODS"] = "lora"
    done = run_script(script, cwd=tmp_path, **knobs, LR_LORA="high")
    assert done.returncode == 1
    assert "argument --lr: invalid" in done.stderr and "not all runs have finished" in done.stderr

    base = tmp_path / "work" / "base" / "checkpoint_last.pt"
    written = base.stat().st_mtime_ns
    done = run_script(script, cwd=tmp_path, **knobs)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "work" / "runs" / "report.md").read_text()
    assert "| base | 1 | 0 | 0 | 0 |" in page and "| lora | 1 | 303,840 |" in page
    assert "bleu: nrefs:1|case:mixed" in page
    assert base.stat().st_mtime_ns == written


@pytest.mark.parametrize("name", ["quickstart_translation.sh", "translation.sh"])
def test_fairseq_knows_the_flags_of_every_method(name, tmp_path):
    """With rates of the script's own; a flag that fairseq does not know ends its parser."""
    options = pytest.importorskip("fairseq.options")
    methods = ["full", "lora", "adapter", "bitfit", "prefix"]
    knobs = {"WORK": str(tmp_path / "work"), "METHODS": " ".join(methods), "SEEDS": "1"}
    parts = ["rows-300"] if name == "translation.sh" else []
    script = ROOT / "scripts" / name
    done = run_script(script, "--dry-run", *parts, cwd=tmp_path, **knobs)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "--finetune-from-model" in line]
    assert len(lines) == len(methods)
    for method, line in zip(methods, lines):
        words = shlex.split(line)
        words = words[words.index("fairseq_cli.train") + 1 :]
        args = options.parse_args_and_arch(options.get_training_parser(), words)
        chosen = args.peft if args.arch == "transformer_peft" else args.arch
        assert method in chosen and args.lr[0] > 0
