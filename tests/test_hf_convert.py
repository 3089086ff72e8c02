"""``fairseq-peft to-hf`` and ``from-hf`` without Hugging Face's library.

tests/parity/test_hf_model.py has that library's half.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import adapter_folders  # noqa: E402
import hf_models  # noqa: E402
import safetensors.torch  # noqa: E402
from adapter_folders import save_base  # noqa: E402
from verbs import refused, run  # noqa: E402

from fairseq_peft import artifact  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.hf import base_model, check, from_folder, to_folder  # noqa: E402
from fairseq_peft.text import raw_text  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """dict.txt, a sentencepiece model, and lm.pt and classifier.pt on them."""
    folder = tmp_path_factory.mktemp("models")
    dictionary = hf_models.write_tokenizer(folder)
    hf_models.write_checkpoint(folder / "lm.pt", dictionary)
    hf_models.write_checkpoint(folder / "classifier.pt", dictionary, 2)
    hf_models.write_checkpoint(folder / "three.pt", dictionary, 3)
    return folder


def weights_of(path):
    return artifact.renamed(torch.load(path, weights_only=False)["model"])


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
    dictionary = from_folder.dictionary_lines(tmp_path / "hf")
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


def changed(folder, tmp_path, **flags):
    """A checkpoint with other flags."""
    dictionary = hf_models.write_tokenizer(tmp_path / "other")
    return hf_models.write_checkpoint(tmp_path / "other" / "model.pt", dictionary, 2, **flags)


@pytest.mark.parametrize(
    "flags, word",
    [
        ({"encoder_normalize_before": True}, "norms come after"),
        ({"activation_fn": "relu"}, "--activation-fn relu"),
        ({"activation_dropout": 0.1}, "no dropout inside"),
        ({"classifier_head": "linear"}, "without a dense layer"),
        ({"peft": "lora"}, "lora_A has no counterpart"),
    ],
)
def test_a_model_without_counterpart_is_refused(flags, word, folder, tmp_path, capsys):
    path = changed(folder, tmp_path, **flags)
    assert word in refused(capsys, "to-hf", path, tmp_path / "hf", "--no-check")
    assert not (tmp_path / "hf").exists()


def test_two_heads_want_a_choice(folder, tmp_path, capsys):
    state = torch.load(folder / "classifier.pt", weights_only=False)
    for name in [name for name in state["model"] if ".head." in name]:
        state["model"][name.replace(".head.", ".other.")] = 2 * state["model"][name]
    path = save_base(tmp_path / "two.pt", state["model"], cfg=state["cfg"])
    files = ("--dict", folder / "dict.txt", "--spm", folder / raw_text.MODEL_NAME)
    words = ("to-hf", path, tmp_path / "hf", "--no-check", *files)
    assert "head, other" in refused(capsys, *words)
    assert "no such head" in refused(capsys, *words, "--head", "third")
    run(*words, "--head", "other")
    tensors = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    wanted = state["model"]["classification_heads.other.dense.weight"]
    assert torch.equal(tensors["classifier.dense.weight"], wanted)


def test_another_dictionary_is_refused(folder, tmp_path, capsys):
    lines = (folder / "dict.txt").read_text().splitlines(keepends=True)
    other = tmp_path / "dict.txt"
    words = ("to-hf", folder / "lm.pt", tmp_path / "hf", "--no-check", "--dict", other)
    other.write_text("".join(lines[:-1]))
    assert "61 rows" in refused(capsys, *words)
    other.write_text("".join(["strange 1\n", *lines[1:]]))
    line = refused(capsys, *words)
    assert "another dictionary" in line  # than the one beside the checkpoint
    alone = tmp_path / "alone.pt"
    alone.write_bytes((folder / "lm.pt").read_bytes())
    spm = ("--spm", folder / raw_text.MODEL_NAME)
    line = refused(capsys, "to-hf", alone, tmp_path / "hf", "--no-check", *spm)
    assert "1 of the 57 pieces" in line


def test_other_kinds_of_sentencepiece_models_are_refused(folder, tmp_path, capsys):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ab abc bcd cde"] * 50),
        model_prefix=str(tmp_path / "bpe"),
        vocab_size=12,
        model_type="bpe",
        minloglevel=2,
    )
    words = ("to-hf", folder / "lm.pt", tmp_path / "hf", "--no-check", "--spm")
    assert "bpe model" in refused(capsys, *words, tmp_path / "bpe.model")
    assert "is not a sentencepiece model" in refused(capsys, *words, folder / "dict.txt")


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

    def from_pretrained(self, folder):
        assert (folder / "config.json").is_file()
        return self

    def eval(self):
        return self

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
        assert f"{to_folder.NUM_TEXTS} texts" in capsys.readouterr().out
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


@pytest.fixture
def converted(folder, tmp_path):
    run("to-hf", folder / "classifier.pt", tmp_path / "hf", "--no-check")
    return tmp_path / "hf"


@pytest.mark.parametrize(
    "values, word",
    [
        ({"model_type": "bert"}, "model_type 'bert'"),
        ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new'"),
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps"),
        ({"pad_token_id": 0}, "pad_token_id"),
        ({"id2label": {"1": "a", "2": "b"}}, "id2label"),
    ],
)
def test_a_folder_without_counterpart_is_refused(values, word, converted, tmp_path, capsys):
    path = converted / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    assert word in refused(capsys, "from-hf", converted, tmp_path / "back", "--no-check")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("kind", ["camembert", "xlm-roberta"])
def test_models_of_the_same_shape_come_here(kind, converted, tmp_path):
    path = converted / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": kind}))
    run("from-hf", converted, tmp_path / "back", "--no-check")
    assert (tmp_path / "back" / "model.pt").is_file()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_refused(name, converted, tmp_path, capsys):
    (converted / name).write_bytes(b"{")
    line = refused(capsys, "from-hf", converted, tmp_path / "back", "--no-check")
    assert "cannot be read" in line
    (converted / name).unlink()
    (converted / "dict.txt").unlink()
    line = refused(capsys, "from-hf", converted, tmp_path / "back", "--no-check")
    assert name in line


def test_a_merged_adapter_goes_there(folder, tmp_path, capsys):
    base = base_model.read(folder / "lm.pt", folder / "dict.txt")
    model = adapter_folders.perturbed(base.dictionary, base.weights, "lora")
    path = tmp_path / "run" / "adapter"
    ours = adapter_folders.write(path, model, base.weights, folder / "lm.pt")
    run("merge", ours, tmp_path / "merged.pt", "--base", folder / "lm.pt")
    files = ("--dict", folder / "dict.txt", "--spm", folder / raw_text.MODEL_NAME)
    run("to-hf", tmp_path / "merged.pt", tmp_path / "hf", "--no-check", *files)
    assert "classes bad, good" in capsys.readouterr().out
    tensors = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    name = "layers.1.self_attn.v_proj"
    merged = torch.load(tmp_path / "merged.pt", weights_only=False)["model"]
    wanted = merged[f"encoder.sentence_encoder.{name}.weight"]
    found = tensors["roberta.encoder.layer.1.attention.self.value.weight"]
    assert torch.equal(found, wanted)
    assert not torch.equal(found, base.weights[f"encoder.sentence_encoder.{name}.weight"])


def test_python(folder, tmp_path):
    import fairseq_peft.hf

    files = (folder / "lm.pt", tmp_path / "hf", folder / "dict.txt", folder / raw_text.MODEL_NAME)
    found = fairseq_peft.hf.convert(*map(str, files), checked=False)
    assert found["kind"] == "RobertaForMaskedLM" and (tmp_path / "hf" / "config.json").is_file()
