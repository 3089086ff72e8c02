"""``fairseq-peft to-hf`` and ``from-hf`` without Hugging Face's library: what goes there and back.

tests/parity/test_hf_model.py has that library's half.
"""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import safetensors.torch  # noqa: E402
from helpers import ROOT  # noqa: E402
from hf_models import weights_of  # noqa: E402
from verbs import refused, run  # noqa: E402

from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.hf import base_model, check, vocabulary  # noqa: E402
from fairseq_peft.text import raw_text  # noqa: E402


@pytest.mark.parametrize("name", ["lm", "classifier"])
def test_there_and_back(name, folder, tmp_path):
    run("to-hf", folder / f"{name}.pt", tmp_path / "hf", "--no-check")
    run("from-hf", tmp_path / "hf", tmp_path / "back", "--no-check")
    before, after = weights_of(folder / f"{name}.pt"), weights_of(tmp_path / "back" / "model.pt")
    here, there = "classification_heads.head.", "classification_heads.sentence_classification_head."
    before = {key.replace(here, there): value for key, value in before.items()}
    lacking = {"encoder.sentence_encoder.version"}
    if name == "classifier":  # a classifier there has no LM head
        lacking |= {key for key in before if key.startswith("encoder.lm_head.")}
    assert before.keys() - after.keys() == lacking and after.keys() <= before.keys()
    assert all(torch.equal(before[key], after[key]) for key in after)
    for file in (raw_text.DICT_NAME, raw_text.MODEL_NAME):
        assert (tmp_path / "back" / file).read_bytes() == (folder / file).read_bytes()
    run("to-hf", tmp_path / "back" / "model.pt", tmp_path / "again", "--no-check")
    for path in (tmp_path / "hf").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_what_a_folder_holds(folder, tmp_path, capsys):
    run("to-hf", folder / "classifier.pt", tmp_path / "hf", "--no-check")
    assert "RobertaForSequenceClassification" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == [
        *("config.json", "dict.txt", "model.safetensors", "sentencepiece.bpe.model"),
        *("tokenizer.json", "tokenizer_config.json"),
    ]
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    tensors = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    assert len(tensors) == 4 + 2 * 16 + 4 + 1
    assert "classifier.out_proj.bias" in tensors and "lm_head.bias" not in tensors
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_a_language_model_has_one_matrix_of_words(folder, tmp_path):
    run("to-hf", folder / "lm.pt", tmp_path / "hf", "--no-check")
    tensors = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    head = sorted(name for name in tensors if name.startswith("lm_head."))
    assert head == [
        *("lm_head.bias", "lm_head.dense.bias", "lm_head.dense.weight"),
        *("lm_head.layer_norm.bias", "lm_head.layer_norm.weight"),
    ]


def test_ids_are_those_of_fairseq(folder, tmp_path):
    run("to-hf", folder / "lm.pt", tmp_path / "hf", "--no-check")
    found = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
    vocab = [piece for piece, _ in found["model"]["vocab"]]
    dictionary = vocabulary.read(tmp_path / "hf").symbols[4:-1]
    assert vocab == ["<s>", "<pad>", "</s>", "<unk>", *dictionary, "<mask>"]
    lines = (folder / "dict.txt").read_text().splitlines()
    assert dictionary == [line.split(" ")[0] for line in lines]
    for added in found["added_tokens"]:
        assert vocab[added["id"]] == added["content"]
    assert found["model"]["unk_id"] == 3


def test_labels(folder, tmp_path, capsys):
    words = ("to-hf", folder / "three.pt", tmp_path / "hf", "--no-check")
    run(*words, "--labels", "a,b,c")
    assert "a, b, c" in capsys.readouterr().out
    run(*words, "--force")
    assert "LABEL_0, LABEL_1, LABEL_2" in capsys.readouterr().out
    assert "3 classes" in refused(capsys, *words, "--force", "--labels", "a,b")
    line = refused(capsys, "to-hf", folder / "lm.pt", tmp_path / "x", "--no-check", "--labels", "a")
    assert "would be ignored" in line


def test_without_the_library_the_check_says_how_to_go_on(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for words in (("to-hf", folder / "lm.pt"), ("from-hf", folder)):
        line = refused(capsys, *words, tmp_path / "hf")
        assert "fairseq-peft[hf]" in line and "--no-check" in line
    assert not (tmp_path / "hf").exists()


class Stub:
    """Hugging Face's library, as far as the check asks: our own model, off by ``error``."""

    def __init__(self, path, dictionary, error):
        base = base_model.read(path, dictionary)
        self.model = base_model.load(base, None)
        self.error = error
        self.AutoModelForMaskedLM = self.AutoTokenizer = self
        self.logging = Mock()

    def from_pretrained(self, folder):
        assert (folder / "config.json").is_file()
        return self

    def eval(self):
        return self

    float = eval

    def __call__(self, input_ids, attention_mask, output_hidden_states):
        features = self.model(input_ids, features_only=True)[0]
        logits = self.model(input_ids)[0] + self.error
        return SimpleNamespace(hidden_states=(None, features), logits=logits)


@pytest.mark.parametrize("error, same", [(0.0, True), (1e-3, False), (float("nan"), False)])
def test_a_folder_that_computes_otherwise_is_not_written(
    error, same, folder, tmp_path, capsys, monkeypatch
):
    stub = Stub(folder / "lm.pt", folder / "dict.txt", error)
    monkeypatch.setattr(check, "load_transformers", lambda: stub)
    monkeypatch.setattr(check, "texts", lambda encode, folder, rows: (len(encode(rows)), 0))
    words = ("to-hf", folder / "lm.pt", tmp_path / "hf")
    if same:
        run(*words)
        assert f"{check.NUM_TEXTS} texts" in capsys.readouterr().out
    else:
        assert "LM logits differ" in refused(capsys, *words)
    assert (tmp_path / "hf").exists() == same


def test_a_folder_that_reads_otherwise_is_refused(folder, monkeypatch):
    ids = {"a": [0, 5, 2], "bb": [0, 6, 7, 2], "bbb": [0, 6, 6, 7, 2]}
    stub = SimpleNamespace(
        AutoTokenizer=SimpleNamespace(
            from_pretrained=lambda folder: lambda text: {"input_ids": ids[text]}
        )
    )
    monkeypatch.setattr(check, "load_transformers", lambda: stub)
    assert check.texts(lambda rows: [ids[row] for row in rows], folder, list(ids)) == (3, 0)
    # Equal scores: the same pieces in another order.
    assert check.texts(lambda rows: [[0, 7, 6, 6, 2]], folder, ["bbb"]) == (0, 1)
    with pytest.raises(InputError, match="text 2, 'bb'"):
        check.texts(lambda rows: [[0, 5, 2], [0, 6, 8, 2]], folder, ["a", "bb"])


PYTHON = """
import fairseq_peft.hf
from fairseq_peft.errors import InputError
found = fairseq_peft.hf.convert({lm!r}, {out!r}, checked=False)
assert found["kind"] == "RobertaForMaskedLM", found
try:
    fairseq_peft.hf.convert("none.pt", {out!r})
except InputError as error:
    assert "none.pt does not exist" in str(error)
else:
    raise AssertionError("none.pt was converted")
"""


@pytest.mark.end_to_end
def test_python(folder, tmp_path):
    """In a process where nothing else has been imported."""
    code = PYTHON.format(lm=str(folder / "lm.pt"), out=str(tmp_path / "hf"))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "hf" / "config.json").is_file()


def test_python_takes_adapter_folders(adapter, folder, tmp_path):
    import fairseq_peft.hf

    spm, base = str(folder / raw_text.MODEL_NAME), str(folder / "lm.pt")
    found = fairseq_peft.hf.convert(
        str(adapter("ia3")), str(tmp_path / "hf"), spm=spm, base=base, checked=False
    )
    assert found["labels"] == ["bad", "good"]
