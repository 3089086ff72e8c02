"""docs/checkpoints.md: from an archive to a classifier, by the page's own commands."""

from __future__ import annotations

import os
import re
import subprocess
import zipfile
from argparse import Namespace
from types import SimpleNamespace

import pytest
from helpers import ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end

PAGE = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.M | re.S)
SIZES = {
    f"{stack}_{name}": value
    for stack in ("encoder", "decoder")
    for name, value in (("layers", 1), ("embed_dim", 16), ("ffn_embed_dim", 8))
}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
POSITIONS = {"max_source_positions": 40, "max_target_positions": 40}
NORMS = {"encoder_normalize_before": True, "decoder_normalize_before": True}


def archive(path):
    """A zip with what BARThez' has, but for the sizes."""
    from fairseq.models import ARCH_CONFIG_REGISTRY
    from fairseq.models.bart import BARTModel
    from hf_models import write_tokenizer

    folder = path.parent / "made"
    dictionary = write_tokenizer(folder)
    args = Namespace(arch="bart_base", **SIZES, **HEADS, **POSITIONS, **NORMS)
    ARCH_CONFIG_REGISTRY["bart_base"](args)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    weights = BARTModel.build_model(args, task).state_dict()
    torch.save({"args": args, "model": weights, "best_loss": 1.0}, folder / "model.pt")
    with zipfile.ZipFile(path, "w") as content:
        content.write(folder / "model.pt", "barthez.base/model.pt")
        content.write(folder / "dict.txt", "barthez.base/dict.txt")
        content.write(folder / "sentencepiece.bpe.model", "barthez.base/sentence.bpe.model")


def test_the_encoder_of_barthez(raw_folder, python, tmp_path):
    archive(tmp_path / "barthez.base.zip")
    (block,) = [block for block in BLOCKS if "barthez.base.zip" in block]
    assert len(block.splitlines()) == 6
    (tmp_path / "my-reviews").symlink_to(raw_folder)
    texts = (raw_folder / "test.review").read_text().splitlines()[:5]
    (tmp_path / "new-texts.txt").write_text("\n".join(texts) + "\n")
    commands = {"unzip": f'{python} -m zipfile -e "$1" .', "fairseq-peft": None}
    commands["fairseq-peft"] = f'{python} -m fairseq_peft.cli "$@"'
    functions = "".join(f"{name}() {{ {body}; }}\n" for name, body in commands.items())
    program = functions + block.replace("bash scripts/", f"bash {ROOT}/scripts/")
    given = {"PYTHON": python, "EPOCHS": "1", "THREADS": "1", "OMP_NUM_THREADS": "1"}
    places = {"DATA_BIN": f"{tmp_path}/data-bin", "RUNS": f"{tmp_path}/runs"}
    done = subprocess.run(
        ["bash", "-e", "-c", program],
        cwd=tmp_path,
        env={**os.environ, **given, **places},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = [line.split("\t")[0] for line in done.stdout.splitlines() if "\t" in line]
    assert len(answers) == 5 and set(answers) <= {"bad", "good"}
