"""The scripts of translation, from data to table, with few updates on little data."""

import lzma
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


def test_summaries(tmp_path, python):
    """From tables to ROUGE, with what others wrote beside; again, nothing is done twice."""
    pytest.importorskip("rouge_score")
    rows = [f"Le {n} mai, il a plu sur la ville. Puis il a neigé {n} jours." for n in range(40)]
    for split in ("train", "valid", "test"):
        lines = [f"{text}\tIl a plu {n}\tPluie {n}" for n, text in enumerate(rows)]
        text = "\n".join(["article\tabstract\ttheirs", *lines, ""])
        (tmp_path / f"{split}.tsv.xz").write_bytes(lzma.compress(text.encode()))
    work = tmp_path / "work"
    knobs = {
        **{"WORK": str(work), "RAW": str(tmp_path), "PYTHON": python, "SYSTEMS": "theirs"},
        **{"METHODS": "lora", "SEEDS": "1", "BEAM": "1", "TEST_ROWS": "3", "HELD_OUT": "5"},
        **{"LAYERS": "1", "WIDTH": "16", "VOCAB_SIZE": "70", "THREADS": "1"},
        **{"UPDATES_SHORT": "4", "UPDATES_BASE": "2", "UPDATES": "2", "PRECISION": "fp32"},
    }
    script = ROOT / "scripts" / "summarization.sh"
    done = run_script(script, "rows-20", cwd=tmp_path, **knobs)
    assert done.returncode == 1 and "run the part base before" in done.stderr
    done = run_script(script, "published", "base", "rows-20", cwd=tmp_path, **knobs)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (work / "rows-20" / "report.md").read_text("utf-8")
    named = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("|")]
    assert named[2:] == ["base", "lora", "theirs", "first sentence of article"]
    assert "rouge1" in page and "bleu" not in page
    written = {path: path.stat().st_mtime_ns for path in work.glob("**/checkpoint_best.pt")}
    assert len(written) == 2
    assert run_script(script, "base", "rows-20", cwd=tmp_path, **knobs).returncode == 0
    assert written == {path: path.stat().st_mtime_ns for path in written}


@pytest.mark.parametrize(
    "name", ["quickstart_translation.sh", "translation.sh", "summarization.sh"]
)
def test_fairseq_knows_the_flags_of_every_method(name, tmp_path):
    """With rates of the script's own; a flag that fairseq does not know ends its parser."""
    options = pytest.importorskip("fairseq.options")
    methods = ["full", "lora", "adapter", "bitfit", "prefix"]
    methods += ["adapter_words"] if name == "translation.sh" else []
    knobs = {"WORK": str(tmp_path / "work"), "METHODS": " ".join(methods), "SEEDS": "1"}
    parts = [] if name.startswith("quickstart") else ["rows-300"]
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
        expected = "adapter,lora" if method == "adapter_words" else method
        assert expected in chosen and args.lr[0] > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_training_is_in_the_precision_that_was_asked_for(tmp_path, precision):
    """In fp32 stock fairseq trains the base, without the plugin; ``auto`` is asked of the machine,
    which a variable may answer for."""
    script = ROOT / "scripts" / "translation.sh"
    lines = {}
    for asked, known in ((precision, {}), ("auto", {"FAIRSEQ_PEFT_PRECISION": precision})):
        knobs = {"WORK": str(tmp_path / "work"), "PRECISION": asked, "SEEDS": "1", **known}
        parts = ["base", "rows-300", "scratch"]
        done = run_script(script, "--dry-run", *parts, cwd=tmp_path, **knobs)
        assert done.returncode == 0, done.stderr
        found = [shlex.split(line) for line in done.stdout.splitlines()]
        lines[asked] = [words for words in found if "fairseq_cli.train" in words]
    assert lines["auto"] == lines[precision]
    bases = [words for words in lines["auto"] if "--finetune-from-model" not in words]
    assert len(bases) == 2 and len(lines["auto"]) == 8
    for words in lines["auto"]:
        stock = precision == "fp32" and words in bases
        assert ("--user-dir" not in words) == stock
        assert stock or words[words.index("--precision") + 1] == precision
        arch = "transformer" if stock else "transformer_full"
        assert words not in bases or words[words.index("--arch") + 1] == arch

    done = run_script(script, "--dry-run", cwd=tmp_path, PRECISION="half")
    assert done.returncode == 1 and "PRECISION=half is unknown" in done.stderr
