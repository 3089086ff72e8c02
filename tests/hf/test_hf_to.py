"""``fairseq-peft to-hf``: what it refuses, and adapters merged on the way."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import hf_models  # noqa: E402
import safetensors.torch  # noqa: E402
from adapter_folders import save_base  # noqa: E402
from hf_models import weights_of  # noqa: E402
from verbs import refused, run  # noqa: E402

from fairseq_peft import precision  # noqa: E402
from fairseq_peft.text import raw_text  # noqa: E402


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
    told = line("to-hf", tmp_path / "none", "--base", folder / "lm.pt")
    assert "none does not exist. Give the adapter folder of that base." in told
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


def test_what_is_compared_is_in_fp32_on_every_processor(folder, tmp_path, monkeypatch, capsys):
    """Where ``auto`` is bf16 for training, both ways of conversion still agree to rounding: the
    difference of bf16 would be a thousand times the limit."""
    pytest.importorskip("transformers")
    monkeypatch.setenv(precision.VARIABLE, "bf16")
    run("to-hf", folder / "classifier.pt", tmp_path / "hf")
    run("from-hf", tmp_path / "hf", tmp_path / "back")
    assert capsys.readouterr().out.count("largest differences") == 2
