"""``fairseq-peft to-hf`` and ``from-hf`` without Hugging Face's library.

tests/parity/test_hf_model.py has that library's half.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import PurePosixPath
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import adapter_folders  # noqa: E402
import hf_models  # noqa: E402
import safetensors.torch  # noqa: E402
from adapter_folders import save_base  # noqa: E402
from helpers import ROOT  # noqa: E402
from verbs import refused, run  # noqa: E402

from fairseq_peft.adapters import folder as adapter_folder  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.hf import base_model, check, vocabulary  # noqa: E402
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
    return adapter_folder.renamed(torch.load(path, weights_only=False)["model"])


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
        ({"encoder_layerdrop": 0.1}, "leaves out no layers"),
        ({"pooler_activation_fn": "relu"}, "--pooler-activation-fn relu"),
        ({"classifier_head": "linear"}, "without a dense layer"),
        ({"pooler": "max"}, "--pooler max"),
        ({"peft": "lora"}, "lora_A has no counterpart"),
    ],
)
def test_a_model_without_counterpart_is_refused(flags, word, folder, tmp_path, capsys):
    path = changed(folder, tmp_path, **flags)
    assert word in refused(capsys, "to-hf", path, tmp_path / "hf", "--no-check")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("task", "refuses"),
    [
        ({"_name": "sentence_classification", "no_init_token": True}, True),
        ({"_name": "sentence_classification"}, False),
        ({"_name": "sentence_prediction", "init_token": None}, True),
        ({"_name": "sentence_prediction", "init_token": 0}, False),
    ],
)
def test_a_classifier_without_a_begin_is_refused(task, refuses, folder, tmp_path, capsys):
    """Its numbers would agree; but the tokenizer there puts <s> before every text."""
    state = torch.load(folder / "classifier.pt", weights_only=False)
    cfg = {**state["cfg"], "task": task}
    path = save_base(tmp_path / "model.pt", state["model"], cfg=cfg)
    files = ("--dict", folder / "dict.txt", "--spm", folder / raw_text.MODEL_NAME)
    words = ("to-hf", path, tmp_path / "hf", "--no-check", *files)
    if refuses:
        assert "do not begin with <s>" in refused(capsys, *words)
    else:
        run(*words)


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
        self.logging = Mock()

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


def test_a_model_without_a_head_is_refused(folder, tmp_path, capsys):
    run("to-hf", folder / "lm.pt", tmp_path / "hf", "--no-check")
    capsys.readouterr()
    path = tmp_path / "hf" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file({n: t for n, t in tensors.items() if "lm_head" not in n}, path)
    line = refused(capsys, "from-hf", tmp_path / "hf", tmp_path / "back", "--no-check")
    assert "neither a language model's head" in line


@pytest.mark.parametrize("values", [{"num_hidden_layers": 3}, {"intermediate_size": 25}])
def test_weights_of_another_configuration_are_refused(values, converted, tmp_path, capsys):
    rewrite(converted / "config.json", **values)
    capsys.readouterr()
    line = refused(capsys, "from-hf", converted, tmp_path / "back", "--no-check")
    assert "are not those of its config.json" in line
    assert not (tmp_path / "back").exists()


def test_text_to_check_wants_a_tokenizer(converted, tmp_path, capsys):
    (converted / raw_text.MODEL_NAME).unlink()
    words = ("from-hf", converted, tmp_path / "back", "--check-text", tmp_path / "text")
    assert "would be ignored: " in refused(capsys, *words)
    assert "would be ignored with --no-check" in refused(capsys, *words, "--no-check")
    run("from-hf", converted, tmp_path / "back", "--no-check")
    assert "reads no text" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_refused(name, converted, tmp_path, capsys):
    (converted / name).write_bytes(b"{")
    line = refused(capsys, "from-hf", converted, tmp_path / "back", "--no-check")
    assert "cannot be read" in line
    (converted / name).unlink()
    (converted / "dict.txt").unlink()
    line = refused(capsys, "from-hf", converted, tmp_path / "back", "--no-check")
    assert name in line


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    """method -> an adapter folder on lm.pt, with its dictionary and sentencepiece model."""
    base = base_model.read(folder / "lm.pt", folder / "dict.txt")

    def make(method, **flags):
        path = tmp_path_factory.mktemp(method) / "adapter"
        model = adapter_folders.perturbed(base.dictionary, base.weights, method, **flags)
        adapter_folders.write(path, model, base.weights, folder / "lm.pt")
        return path

    return make


def test_a_merged_adapter_goes_there(adapter, folder, tmp_path, capsys):
    """Merged by hand, or on the way: the same folder."""
    path, base = adapter("lora"), ("--base", folder / "lm.pt")
    run("merge", path, tmp_path / "merged.pt", *base)
    files = ("--dict", folder / "dict.txt", "--spm", folder / raw_text.MODEL_NAME)
    run("to-hf", tmp_path / "merged.pt", tmp_path / "hf", "--no-check", *files)
    assert "classes bad, good" in capsys.readouterr().out
    tensors = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    name = "layers.1.self_attn.v_proj"
    merged = torch.load(tmp_path / "merged.pt", weights_only=False)["model"]
    wanted = merged[f"encoder.sentence_encoder.{name}.weight"]
    found = tensors["roberta.encoder.layer.1.attention.self.value.weight"]
    assert torch.equal(found, wanted)
    before = weights_of(folder / "lm.pt")[f"encoder.sentence_encoder.{name}.weight"]
    assert not torch.equal(found, before)
    run("to-hf", path, tmp_path / "direct", "--no-check", *base, *files[2:])
    assert "classes bad, good" in capsys.readouterr().out
    for file in (tmp_path / "hf").iterdir():
        if file.name != "dict.txt":  # the adapter folder's names <mask>
            assert file.read_bytes() == (tmp_path / "direct" / file.name).read_bytes(), file.name


@pytest.mark.parametrize(
    ("method", "flags", "message"),
    [
        ("prefix", {}, "cannot be merged"),
        ("bitfit", {"classifier_head": "linear"}, "before the classes"),
        ("head_only", {"pooler": "mean"}, "--pooler mean"),
    ],
)
def test_an_adapter_without_counterpart_is_refused(
    method, flags, message, adapter, folder, tmp_path, capsys
):
    spm = ("--spm", folder / raw_text.MODEL_NAME)
    words = ("to-hf", adapter(method, **flags), tmp_path / "hf", "--no-check", *spm)
    assert message in refused(capsys, *words, "--base", folder / "lm.pt")
    assert not (tmp_path / "hf").exists()


def test_an_adapter_wants_its_base_and_its_files(adapter, folder, tmp_path, capsys):
    path, spm = adapter("lora"), ("--spm", folder / raw_text.MODEL_NAME)
    words = ("to-hf", path, tmp_path / "hf", "--no-check")
    assert "(--base)" in refused(capsys, *words, *spm)
    base = ("--base", folder / "lm.pt")
    line = refused(capsys, *words, *base, *spm, "--dict", folder / "classifier.pt")
    assert "is not a fairseq dictionary" in line
    lines = (folder / "dict.txt").read_text().splitlines(keepends=True)
    (tmp_path / "dict.txt").write_text("".join([*lines[1:], lines[0]]))
    line = refused(capsys, *words, *base, *spm, "--dict", tmp_path / "dict.txt")
    assert "is not the dictionary" in line
    assert "is not a sentencepiece model" in refused(capsys, *words, *base)  # the folder's own
    line = refused(capsys, "to-hf", folder / "lm.pt", tmp_path / "hf", "--no-check", *base)
    assert "would be ignored" in line
    line = refused(capsys, *words, "--base", folder / "none.pt", *spm)
    assert "none.pt does not exist" in line


def test_missing_files_are_named(folder, tmp_path, capsys):
    def line(*words):
        return refused(capsys, words[0], words[1], tmp_path / "hf", "--no-check", *words[2:])

    assert "none.pt does not exist" in line("to-hf", tmp_path / "none.pt")
    assert "none.txt does not exist" in line("to-hf", folder / "lm.pt", "--dict", "none.txt")
    assert "none.model does not exist" in line("to-hf", folder / "lm.pt", "--spm", "none.model")
    assert "is no folder" in line("from-hf", tmp_path / "none")
    assert "is no folder" in line("from-hf", folder / "lm.pt")
    assert not (tmp_path / "hf").exists()


def test_a_checkpoint_of_another_architecture_is_refused(folder, tmp_path, capsys):
    files = ("--dict", folder / "dict.txt", "--spm", folder / raw_text.MODEL_NAME)

    def line(path):
        return refused(capsys, "to-hf", path, tmp_path / "hf", "--no-check", *files)

    translator = {f"{side}.embed_tokens.weight": torch.ones(62, 16) for side in ("en", "de")}
    path = save_base(tmp_path / "translator.pt", translator)
    assert "it is no RoBERTa of fairseq's" in line(path)
    torch.save({"weights": torch.ones(3)}, path)
    assert "it is no fairseq checkpoint" in line(path)
    path.write_bytes((folder / "lm.pt").read_bytes()[:5000])
    assert "cannot be read as a checkpoint" in line(path)


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
