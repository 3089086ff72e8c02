"""``fairseq-peft export`` and ``import``: folders of Hugging Face PEFT, without that library.

tests/parity/test_hf_folder.py has the library's half.
"""

from __future__ import annotations

import json
import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import adapter_folders as adapters  # noqa: E402
import safetensors.torch  # noqa: E402
from helpers import TINY  # noqa: E402
from hf_cases import CASES  # noqa: E402
from verbs import refused, run  # noqa: E402

from fairseq_peft.adapters import folder as adapter_folder  # noqa: E402
from fairseq_peft.text import bpe  # noqa: E402


@pytest.fixture(scope="module")
def base(dictionary, tmp_path_factory):
    """The file of a base, with its dictionary and a sentencepiece model beside it."""
    folder = tmp_path_factory.mktemp("base")
    dictionary.save(str(folder / "dict.txt"))
    (folder / adapter_folder.TOKENIZER).write_bytes(b"pieces")
    flags = {"_name": "roberta_small", **TINY}
    state = adapters.base_state(dictionary)
    return adapters.save_base(folder / "model.pt", state, cfg={"model": flags})


@pytest.fixture(scope="module")
def adapter(dictionary, base, tmp_path_factory):
    """``adapter("lora", ...)``: an adapter folder on ``base``, its tensors moved."""

    def write(peft, **flags):
        weights = torch.load(base, weights_only=True)["model"]
        model = adapters.perturbed(dictionary, weights, peft, **flags)
        model.args._name = f"roberta_small_{peft.split(',')[0]}"
        return adapters.write(tmp_path_factory.mktemp("run") / "adapter", model, weights, base)

    return write


def there(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    return config, safetensors.torch.load_file(folder / "adapter_model.safetensors")


def same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype and first[name].shape == second[name].shape
        assert torch.equal(first[name], second[name]), name


def renamed(name, texts):
    for old, new in texts.items():
        name = name.replace(old, new)
    return name


def scores(folder, base, batch):
    from fairseq_peft.checkpoints import finetuned

    found, model = finetuned.from_folder(folder, base)
    head = found.description["head"]["name"]
    with torch.no_grad():
        return model(batch, classification_head_name=head)[0]


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case, adapter, base, batch, tmp_path):
    """Export, import, export: no tensor changes, nor what the model computes."""
    peft, flags, expected = CASES[case]
    ours = adapter(peft, **flags)
    run("export", ours, tmp_path / "theirs", "--base", base)
    config, tensors = there(tmp_path / "theirs")
    assert {key: config[key] for key in expected} == expected
    assert config["task_type"] == "SEQ_CLS"
    run("import", tmp_path / "theirs", tmp_path / "ours", "--base", base)
    before, after = adapter_folder.read(ours), adapter_folder.read(tmp_path / "ours")
    assert after.description["labels"] == ["bad", "good"]
    other = {f".{adapters.HEAD}.": ".sentence_classification_head."}
    same({renamed(name, other): tensor for name, tensor in before.tensors.items()}, after.tensors)
    assert torch.equal(scores(ours, base, batch), scores(tmp_path / "ours", base, batch))
    run("export", tmp_path / "ours", tmp_path / "again", "--base", base)
    for name in ("adapter_config.json", "labels.json", "adapter_model.safetensors"):
        files = [tmp_path / folder / name for folder in ("theirs", "again")]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_knobs_survive(adapter, base, tmp_path):
    """What an import cannot know, as --lora-layers, is said in other words that mean the same."""
    ours = adapter("lora", lora_dropout=0.25, lora_alpha=3.5, lora_rank=5, lora_rslora=True)
    run("export", ours, tmp_path / "theirs", "--base", base)
    run("import", tmp_path / "theirs", tmp_path / "ours", "--base", base)
    before, after = (
        adapter_folder.read(folder).description for folder in (ours, tmp_path / "ours")
    )
    for part in ("method", "labels", "dictionary", "base", "parameters", "complete"):
        assert before[part] == after[part], part
    assert before["input"].items() <= after["input"].items()


def test_only_what_is_needed_is_written(adapter, base, tmp_path):
    run("export", adapter("lora"), tmp_path / "theirs", "--base", base)
    names = ["adapter_config.json", "adapter_model.safetensors", "labels.json"]
    assert sorted(path.name for path in (tmp_path / "theirs").iterdir()) == names
    config, tensors = there(tmp_path / "theirs")
    assert config == {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["query", "value"],
        "task_type": "SEQ_CLS",
    }
    assert len(tensors) == 2 * 2 * 2 + 4
    name = "base_model.model.roberta.encoder.layer.1.attention.self.value.lora_B.weight"
    assert tensors[name].shape == (16, 8)
    assert "base_model.model.classifier.out_proj.weight" in tensors
    labels = json.loads((tmp_path / "theirs" / "labels.json").read_text())
    assert labels == {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}


def test_the_base_is_named_where_asked(adapter, base, tmp_path):
    words = ("--base", base, "--base-name", "models/converted")
    run("export", adapter("lora"), tmp_path / "theirs", *words)
    config, _ = there(tmp_path / "theirs")
    assert config["base_model_name_or_path"] == "models/converted"
    run("import", tmp_path / "theirs", tmp_path / "ours", "--base", base)


@pytest.mark.parametrize(
    "peft, flags, words",
    [
        ("adapter", {}, ["--peft adapter", "no such method"]),
        ("compacter", {"compacter_bottleneck": 4}, ["--peft compacter", "no such method"]),
        ("adalora", {}, ["importances"]),
        ("vera", {}, ["folders of VeRA are not written"]),
        ("oft", {}, ["folders of OFT are not written"]),
        ("lora,ia3", {}, ["one method"]),
        ("head_only", {}, ["no adapter"]),
        ("bitfit", {}, ["--peft bitfit"]),
        ("prompt", {}, ["after_bos", "before_bos"]),
        ("prefix", {}, ["shared", "reserved"]),
        ("lora", {"classifier_head": "linear"}, ["--classifier-head linear", "dense"]),
        ("lora", {"pooler": "mean"}, ["--pooler mean", "the features of <s>"]),
        ("lora", {"activation_fn": "relu"}, ["--activation-fn relu", "gelu"]),
        ("lora", {"pooler_activation_fn": "relu"}, ["--pooler-activation-fn relu", "tanh"]),
    ],
)
def test_what_peft_cannot_express_is_refused(peft, flags, words, adapter, base, tmp_path, capsys):
    ours = adapter(peft, **flags)
    line = refused(capsys, "export", ours, tmp_path / "theirs", "--base", base)
    assert all(word in line for word in words), line
    assert not (tmp_path / "theirs").exists()


def test_another_base_is_refused(adapter, dictionary, base, tmp_path, capsys):
    other = adapters.save_base(tmp_path / "other.pt", adapters.base_state(dictionary, seed=12))
    line = refused(capsys, "export", adapter("lora"), tmp_path / "theirs", "--base", other)
    assert "not the base" in line


def test_a_model_without_bos_is_refused(dictionary, base, tmp_path, capsys):
    weights = torch.load(base, weights_only=True)["model"]
    model = adapters.perturbed(dictionary, weights)
    given = {"max_tokens": 40, "begin": False, "num_texts": 1}
    ours = adapters.write(tmp_path / "run" / "adapter", model, weights, base, input=given)
    assert "<s>" in refused(capsys, "export", ours, tmp_path / "theirs", "--base", base)


def test_a_whole_model_is_refused(dictionary, tmp_path, capsys):
    model = adapters.perturbed(dictionary, adapters.base_state(dictionary))
    ours = adapters.write(tmp_path / "run" / "adapter", model, None)
    assert "whole model" in refused(capsys, "export", ours, tmp_path / "theirs")


def test_nothing_is_written_over_unasked(adapter, base, tmp_path, capsys):
    ours, theirs = adapter("lora"), tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years of work")
    words = (ours, theirs, "--base", base)
    assert "exists" in refused(capsys, "export", *words)
    assert (theirs / "thesis.tex").exists()
    line = refused(capsys, "export", *words, "--force")
    assert "holds thesis.tex" in line and (theirs / "thesis.tex").exists()
    (theirs / "thesis.tex").rename(tmp_path / "thesis.tex")
    run("export", *words)
    run("export", *words, "--force")
    capsys.readouterr()
    line = refused(capsys, "import", theirs, ours, "--base", base)
    assert "exists" in line


@pytest.fixture(scope="module")
def exported(adapter, base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "theirs"
    run("export", adapter("lora"), folder, "--base", base)
    return folder


@pytest.fixture
def theirs(exported, tmp_path):
    """A copy of a good folder of PEFT, to spoil; ``theirs(key=value)`` changes its config."""
    folder = shutil.copytree(exported, tmp_path / "theirs")

    def change(**values):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
        return folder

    return change


def without_config(folder, tensors):
    (folder / "adapter_config.json").unlink()


def without_tensors(folder, tensors):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def cut(folder, tensors):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def no_json(folder, tensors):
    (folder / "adapter_config.json").write_text("{")


def one_less(folder, tensors):
    tensors.pop(next(name for name in tensors if "lora_B" in name))


def one_more(folder, tensors):
    tensors["base_model.model.roberta.pooler.dense.lora_A.weight"] = torch.ones(8, 16)


def integers(folder, tensors):
    name = next(iter(tensors))
    tensors[name] = tensors[name].long()


def no_classifier(folder, tensors):
    for name in [name for name in tensors if "classifier" in name]:
        del tensors[name]


@pytest.mark.parametrize(
    "spoil, word",
    [
        (without_config, "no folder of PEFT"),
        (without_tensors, "can hold code"),
        (cut, "is damaged"),
        (no_json, "cannot be read as JSON"),
        (one_less, "is missing"),
        (one_more, "is left over"),
        (integers, "no floating-point type"),
        (no_classifier, "has no classifier"),
    ],
)
def test_a_spoilt_folder_is_refused(spoil, word, theirs, base, tmp_path, capsys):
    folder = theirs()
    tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    names = set(tensors)
    spoil(folder, tensors)
    if set(tensors) != names or any(t.dtype == torch.long for t in tensors.values()):
        safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")
    assert word in refused(capsys, "import", folder, tmp_path / "ours", "--base", base)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    "values, words",
    [
        ({"peft_type": "LOHA"}, ["LOHA", "LORA, IA3"]),
        ({"peft_type": "ADALORA"}, ["ADALORA"]),
        ({"task_type": "CAUSAL_LM"}, ["CAUSAL_LM", "SEQ_CLS"]),
        ({"use_qalora": True}, ["use_qalora", "no counterpart"]),
        ({"lora_bias": True}, ["lora_bias"]),
        ({"modules_to_save": ["classifier", "word_embeddings"]}, ["modules_to_save"]),
        ({"target_modules": ["c_attn"]}, ["c_attn", "query"]),
        ({"target_modules": ["query", "key"]}, ["is missing"]),
        ({"target_modules": "(query"}, ["cannot be understood"]),
        ({"target_modules": ["query"]}, ["is left over"]),
        ({"init_lora_weights": "corda"}, ["corda", "path_initial_model"]),
        ({"r": 4}, ["is (8, 16), expected (4, 16)"]),
        ({"r": "many"}, ["cannot be understood"]),
        ({"r": 0}, ["--lora-rank 0"]),
        ({"rank_pattern": {"query": 3}}, ["expected (3, 16)"]),
        ({"bias": "lora_only"}, ["base_layer.bias is missing"]),
    ],
)
def test_a_config_without_counterpart_is_refused(values, words, theirs, base, tmp_path, capsys):
    folder = theirs(**values)
    line = refused(capsys, "import", folder, tmp_path / "ours", "--base", base)
    assert all(word in line for word in words), line


def test_keys_that_change_nothing_are_taken(theirs, base, tmp_path):
    """As PEFT itself writes them, whatever its version, and ways to say the same."""
    folder = theirs(
        peft_version="99.0.0",
        inference_mode=True,
        megatron_core="megatron.core",
        qalora_group_size=16,
        loftq_config={},
        use_dora=False,
        layers_to_transform=[0, 1],
        layers_pattern="layer",
        modules_to_save=["classifier", "score", "classifier"],
        target_modules=r".*\.self\.(query|value)",
    )
    config = json.loads((folder / "adapter_config.json").read_text())
    run("import", folder, tmp_path / "ours", "--base", base, "--labels", "no,yes", "--pairs")
    found = adapter_folder.read(tmp_path / "ours").description
    assert found["labels"] == ["no", "yes"] and found["input"]["num_texts"] == 2
    assert found["method"]["knobs"]["targets"] == "q_proj,v_proj"
    assert found["imported"]["config"] == config


def test_without_labels_classes_are_numbered(theirs, base, tmp_path):
    folder = theirs()
    (folder / "labels.json").unlink()
    run("import", folder, tmp_path / "ours", "--base", base)
    assert adapter_folder.read(tmp_path / "ours").description["labels"] == ["LABEL_0", "LABEL_1"]


def test_the_base_may_read_text_by_another_bpe(theirs, base, tmp_path):
    """Its base's folder says so."""
    beside = shutil.copytree(base.parent, tmp_path / "base")
    (beside / adapter_folder.TOKENIZER).unlink()
    (beside / bpe.TOLD).write_text('{"bpe": "none"}')
    run("import", theirs(), tmp_path / "ours", "--base", beside / base.name)
    assert list(adapter_folder.read(tmp_path / "ours").text_files) == [bpe.TOLD]


@pytest.mark.parametrize("labels", ["one", "a,b,c", "same,same"])
def test_labels_must_fit_the_classifier(labels, theirs, base, tmp_path, capsys):
    words = (theirs(), tmp_path / "ours", "--base", base, "--labels", labels)
    assert "2 classes" in refused(capsys, "import", *words)


def test_the_dictionary_must_be_the_bases(theirs, base, tmp_path, capsys):
    words = ("import", theirs(), tmp_path / "ours", "--base", base)
    short = tmp_path / "short.txt"
    short.write_text("".join((base.parent / "dict.txt").read_text().splitlines(True)[:-3]))
    assert "33 rows" in refused(capsys, *words, "--dict", short)
    assert "--spm" in refused(capsys, *words, "--spm", tmp_path / "none.model")
    assert "does not exist" in refused(capsys, *words[:-1], tmp_path / "none.pt")


def test_a_base_must_say_its_heads_unless_it_has_a_known_size(theirs, dictionary, tmp_path, capsys):
    dictionary.save(str(tmp_path / "dict.txt"))
    (tmp_path / adapter_folder.TOKENIZER).write_bytes(b"pieces")
    base = adapters.save_base(tmp_path / "model.pt", adapters.base_state(dictionary))
    line = refused(capsys, "import", theirs(), tmp_path / "ours", "--base", base)
    assert "attention heads" in line


def test_an_imported_adapter_is_like_any_other(theirs, base, batch, tmp_path, capsys):
    """It is verified, inspected and merged."""
    run("import", theirs(), tmp_path / "ours", "--base", base)
    run("verify", tmp_path / "ours", "--base", base)
    run("inspect", tmp_path / "ours")
    run("merge", tmp_path / "ours", tmp_path / "merged.pt", "--base", base)
    assert (tmp_path / "merged.pt").is_file()
