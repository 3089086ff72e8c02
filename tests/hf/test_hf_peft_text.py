"""``fairseq-peft export`` and ``import`` of encoder-decoders' adapters, without PEFT itself.

tests/parity/test_parity_text.py has the library's half.
"""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import adapter_folders  # noqa: E402
import hf_models  # noqa: E402
import safetensors.torch  # noqa: E402
from families import BART, Transformer, TransformerLM  # noqa: E402
from hf_cases import TEXT_CASES  # noqa: E402
from verbs import refused, run  # noqa: E402

from fairseq_peft.adapters import folder as adapter_folder  # noqa: E402
from fairseq_peft.hf import peft_beside, peft_folder, peft_write  # noqa: E402
from fairseq_peft.serving.generate import Generator  # noqa: E402

KINDS = tuple(hf_models.ENCODER_DECODERS)
#: Those whose names are found in ways of their own; tests/parity has every case on every kind.
PLACES = [
    ("bart", "all linear maps"),
    ("mbart", "patterns"),
    ("m2m_100", "cross-attention"),
    ("mbart", "ia3"),
    ("mbart", "prompt"),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Kind -> the folder of a base."""
    folder = tmp_path_factory.mktemp("bases")
    for kind in KINDS:
        hf_models.write_encoder_decoder(folder / kind, kind)
    return folder


def there(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    return config, safetensors.torch.load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("kind, case", PLACES)
def test_there_and_back_as_text(kind, case, bases, tmp_path):
    """Export, import, export: no tensor changes, nor what stands around a text."""
    peft, flags, expected = TEXT_CASES[case]
    base = bases / kind / "model.pt"
    hf_models.write_encoder_decoder_adapter(tmp_path / "ours", bases / kind, kind, peft, **flags)
    run("export", tmp_path / "ours", tmp_path / "theirs", "--base", base)
    config, _ = there(tmp_path / "theirs")
    assert {key: config[key] for key in expected} == expected
    assert config["task_type"] == "SEQ_2_SEQ_LM"
    assert not (tmp_path / "theirs" / "labels.json").exists()
    run("import", tmp_path / "theirs", tmp_path / "back", "--base", base)
    before, after = (adapter_folder.read(tmp_path / n, of_any_task=True) for n in ("ours", "back"))
    assert before.tensors.keys() == after.tensors.keys()
    for name, tensor in before.tensors.items():
        assert (
            torch.equal(tensor, after.tensors[name]) and tensor.dtype == after.tensors[name].dtype
        )
    for part in ("dictionaries", "base", "parameters"):
        assert before.description[part] == after.description[part], part
    if kind != "bart":  # denoising answers no texts: an adapter on such a base translates
        assert before.description["task"] == after.description["task"]
    run("export", tmp_path / "back", tmp_path / "again", "--base", base)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        files = [tmp_path / folder / name for folder in ("theirs", "again")]
        assert files[0].read_bytes() == files[1].read_bytes(), name


@pytest.mark.parametrize("kind", ["mbart", "m2m_100"])
def test_an_imported_adapter_writes(kind, tmp_path):
    """What ``generate`` makes of it on a base that says nothing of languages, as from-hf writes it,
    is what it makes of the adapter that was exported."""
    given = tmp_path / "base"
    model = hf_models.write_encoder_decoder(given, kind)
    model_pt = given / "model.pt"
    hf_models.write_encoder_decoder_adapter(tmp_path / "ours", given, kind, "lora")
    run("export", tmp_path / "ours", tmp_path / "theirs", "--base", model_pt)
    state = torch.load(model_pt, weights_only=False)
    state["cfg"]["task"] = {"_name": "translation"}
    torch.save(state, model_pt)
    model.dictionary.save(str(given / "dict.txt"))  # with the languages
    task = hf_models.ENCODER_DECODERS[kind][2]
    words = ("--source-lang", task["source_lang"], "--target-lang", task["target_lang"])
    run("import", tmp_path / "theirs", tmp_path / "back", "--base", model_pt, *words)
    texts = ["un mot deux mots", "a b c d e"]
    ours, back = (Generator.load(model_pt, tmp_path / name) for name in ("ours", "back"))
    assert back.generate(texts, max_len_b=8) == ours.generate(texts, max_len_b=8)


@pytest.mark.parametrize(
    "peft, flags, words",
    [
        ("prefix", {}, ["--peft prefix", "in the decoder alone"]),
        ("prompt", {}, ["--prompt-placement after_bos", "before <s>"]),
        ("lora", {"peft_targets": "embed_tokens,q_proj"}, ["several names"]),
        ("lora", {"lora_bias": "all"}, ["--lora-bias all", "bias of the logits"]),
    ],
)
def test_what_an_encoder_decoder_cannot_send_is_refused(peft, flags, words, dictionary):
    line = adapter_folders.refused(peft_write.of_model, BART(dictionary).build(peft, **flags))
    assert all(word in line for word in words), line


def test_models_that_cannot_send_are_refused(dictionary, tmp_path):
    """A transformer with norms behind its blocks, a language model, BART that classifies."""
    ours = adapter_folders.write_text(tmp_path / "bart", BART(dictionary), "lora", seed=1)
    model = TransformerLM(dictionary).build("lora")
    assert "no counterpart" in adapter_folders.refused(peft_beside.of, model)
    found, model = adapter_folder.read(ours, of_any_task=True), Transformer(dictionary)
    line = adapter_folders.refused(peft_folder.content, found, model.build("lora"))
    assert "none of the library's encoder-decoders" in line
    del found.description["task"]
    line = adapter_folders.refused(peft_folder.content, found, BART(dictionary).build("lora"))
    assert "classifies with an encoder-decoder" in line


def test_a_folder_of_text_that_cannot_come_is_refused(bases, tmp_path, capsys):
    base = bases / "bart"
    hf_models.write_encoder_decoder_adapter(tmp_path / "ours", base, "bart", "lora")
    run("export", tmp_path / "ours", tmp_path / "theirs", "--base", base / "model.pt")
    given = ("import", tmp_path / "theirs", tmp_path / "back", "--base", base / "model.pt")
    capsys.readouterr()
    assert "--labels would be ignored" in refused(capsys, *given, "--labels", "a,b")
    assert "--pairs would be ignored" in refused(capsys, *given, "--pairs")
    config, _ = there(tmp_path / "theirs")
    for values, word in (
        ({"task_type": "SEQ_CLS"}, "SEQ_2_SEQ_LM"),
        ({"peft_type": "PREFIX_TUNING"}, "Those that can: LORA, IA3, PROMPT_TUNING"),
        ({"bias": "all"}, "bias 'all' cannot be imported"),
        ({"target_modules": ["q_proj", "v_proj", "fc1"]}, "is missing"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["shared"]}, "mean nothing in this model"),
    ):
        text = json.dumps({**config, **values})
        (tmp_path / "theirs" / "adapter_config.json").write_text(text)
        assert word in refused(capsys, *given)
        assert not (tmp_path / "back").exists()
