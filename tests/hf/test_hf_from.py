"""``fairseq-peft from-hf``: what comes from there, and what it refuses."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import safetensors.torch  # noqa: E402
from hf_models import weights_of  # noqa: E402
from verbs import refused, run  # noqa: E402

from fairseq_peft.text import raw_text  # noqa: E402


@pytest.mark.parametrize(
    "values, word",
    [
        ({"model_type": "distilbert"}, "model_type 'distilbert'"),
        ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new'"),
        ({"pad_token_id": 0}, "pad_token_id"),
        ({"id2label": {"1": "a", "2": "b"}}, "id2label does not number the classes from 0"),
        ({"id2label": {"0": "a", "1": "a"}}, "id2label"),
        ({"id2label": {"0": 0, "1": 1}}, "id2label"),
        ({"id2label": {"a": "x"}}, "id2label"),
        ({"id2label": ["x", "y"]}, "id2label"),
    ],
)
def test_a_folder_without_counterpart_is_refused(values, word, converted, tmp_path, capsys):
    rewrite(converted / "config.json", **values)
    assert word in refused(capsys, "from-hf", converted, tmp_path / "back", "--no-check")
    assert not (tmp_path / "back").exists()


def rewrite(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("kind", ["camembert", "xlm-roberta"])
def test_models_of_the_same_shape_come_here(kind, converted, tmp_path):
    rewrite(converted / "config.json", model_type=kind)
    run("from-hf", converted, tmp_path / "back", "--no-check")
    assert (tmp_path / "back" / "model.pt").is_file()


def older(folder, **more):
    """Give the folder pytorch_model.bin instead of model.safetensors."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**tensors, **more}, folder / "pytorch_model.bin")


def test_rows_come_in_the_order_of_fairseq(folder, tmp_path):
    """CamemBERT's layout: <s> and </s> behind three others. Each row is still its token's."""
    run("to-hf", folder / "lm.pt", tmp_path / "hf", "--no-check")
    path = tmp_path / "hf" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocab, order = content["model"]["vocab"], [4, 1, 5, 3, 6, 0, 2]
    order += range(len(order), len(vocab))
    content["model"]["vocab"] = [vocab[row] for row in order]
    assert content["model"]["vocab"][5][0] == "<s>" and content["model"]["vocab"][6][0] == "</s>"
    path.write_text(json.dumps(content))
    rewrite(tmp_path / "hf" / "config.json", bos_token_id=5, eos_token_id=6)
    older(tmp_path / "hf")
    state = torch.load(tmp_path / "hf" / "pytorch_model.bin", weights_only=True)
    for name in ("roberta.embeddings.word_embeddings.weight", "lm_head.bias"):
        state[name] = state[name][order]
    state["lm_head.decoder.weight"] = state["roberta.embeddings.word_embeddings.weight"]
    torch.save(state, tmp_path / "hf" / "pytorch_model.bin")
    run("from-hf", tmp_path / "hf", tmp_path / "back", "--no-check")
    before, after = weights_of(folder / "lm.pt"), weights_of(tmp_path / "back" / "model.pt")
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert (tmp_path / "back" / "dict.txt").read_bytes() == (folder / "dict.txt").read_bytes()


def test_a_file_of_an_older_version_is_no_program(converted, tmp_path, capsys):
    words = ("from-hf", converted, tmp_path / "back", "--no-check")
    older(converted, code=PurePosixPath("code"))
    line = refused(capsys, *words)
    assert "holds more than tensors" in line and "weights_only" not in line
    (converted / "pytorch_model.bin").write_bytes(b"no file of torch's")
    assert "pytorch_model.bin" in refused(capsys, *words) and not (tmp_path / "back").exists()


def test_pieces_that_the_dictionary_lacks_are_refused(converted, tmp_path, capsys):
    path = converted / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"][9][0] = "strange"
    path.write_text(json.dumps(content))
    line = refused(capsys, "from-hf", converted, tmp_path / "back", "--no-check")
    assert "1 of the 57 pieces" in line


def test_a_model_without_a_head_comes_here_and_goes_back(folder, tmp_path, capsys):
    run("to-hf", folder / "lm.pt", tmp_path / "hf", "--no-check")
    capsys.readouterr()
    path = tmp_path / "hf" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file({n: t for n, t in tensors.items() if "lm_head" not in n}, path)
    run("from-hf", tmp_path / "hf", tmp_path / "back", "--no-check")
    assert "no LM head" in capsys.readouterr().out
    found = weights_of(tmp_path / "back" / "model.pt")
    assert not any("lm_head" in name for name in found)
    run("to-hf", tmp_path / "back" / "model.pt", tmp_path / "again", "--no-check")
    again = safetensors.torch.load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == {name for name in tensors if "lm_head" not in name}
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["architectures"] == ["RobertaModel"]


@pytest.mark.parametrize("values", [{"num_hidden_layers": 3}, {"intermediate_size": 25}])
def test_weights_of_another_configuration_are_refused(values, converted, tmp_path, capsys):
    rewrite(converted / "config.json", **values)
    capsys.readouterr()
    line = refused(capsys, "from-hf", converted, tmp_path / "back", "--no-check")
    assert "are not those of its config.json" in line
    assert not (tmp_path / "back").exists()


def test_text_to_check_wants_a_tokenizer(converted, tmp_path, capsys):
    (converted / raw_text.MODEL_NAME).unlink()
    words = ("from-hf", converted, tmp_path / "back", "--no-check")
    line = refused(capsys, *words, "--check-text", tmp_path / "text")
    assert "would be ignored with --no-check" in line
    run(*words)
    assert "reads no text with this checkpoint: it has no sentencepiece" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_refused(name, converted, tmp_path, capsys):
    (converted / name).write_bytes(b"{")
    line = refused(capsys, "from-hf", converted, tmp_path / "back", "--no-check")
    assert "cannot be read" in line
    (converted / name).unlink()
    (converted / "dict.txt").unlink()
    line = refused(capsys, "from-hf", converted, tmp_path / "back", "--no-check")
    assert name in line
