"""``fairseq-peft export``, ``import`` and ``merge`` of Hugging Face's own models (T5, GPT-2, BLOOM
and their kin), without PEFT itself.

tests/parity/test_hf_parity.py has the library's half.
"""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
transformers = pytest.importorskip("transformers")

import hf_families  # noqa: E402
from hf_cases import OWN_CASES  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from verbs import refused, run  # noqa: E402

from fairseq_peft.adapters import folder as adapter_folder  # noqa: E402

#: kind, case: each case somewhere, and names of every style.
PLACES = [
    ("t5-gated", "all linear maps"),
    ("t5", "prompt"),
    ("gpt2", "dora"),
    ("gpt2", "ia3"),
    ("gpt2", "prefix"),
    ("bloom", "patterns"),
    ("bart", "biases of maps"),
]


@pytest.fixture(scope="module")
def based(tmp_path_factory):
    """``based("t5")``: the kind and the folder of a base of it."""
    place, made = tmp_path_factory.mktemp("bases"), {}

    def of(name):
        if name not in made:
            kind = hf_families.Kind(name, place)
            made[name] = kind, kind.write(place / name)
        return made[name]

    return of


@pytest.mark.parametrize("name, case", PLACES)
def test_there_and_back(name, case, based, tmp_path):
    """Export, import, export: no tensor changes, nor what the folder says."""
    (kind, base), (peft, flags, expected) = based(name), OWN_CASES[case]
    kind.write_adapter(tmp_path / "ours", base, peft, **flags)
    run("export", tmp_path / "ours", tmp_path / "theirs", "--base", base)
    config = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    assert {key: config[key] for key in expected} == expected
    assert config["task_type"] == ("CAUSAL_LM" if kind.causal else "SEQ_2_SEQ_LM")
    assert config.get("fan_in_fan_out", False) == (name == "gpt2" and peft in ("dora", "ia3"))
    run("import", tmp_path / "theirs", tmp_path / "back", "--base", base, "--labels", "good,bad")
    before, after = (adapter_folder.read(tmp_path / n, of_any_task=True) for n in ("ours", "back"))
    assert before.tensors.keys() == after.tensors.keys()
    assert all(torch.equal(tensor, after.tensors[n]) for n, tensor in before.tensors.items())
    for part in ("tokenizer", "base", "parameters"):
        assert before.description[part] == after.description[part], part
    assert after.description["task"]["labels"] == "good,bad"
    run("export", tmp_path / "back", tmp_path / "again", "--base", base)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        files = [tmp_path / folder / file for folder in ("theirs", "again")]
        assert files[0].read_bytes() == files[1].read_bytes(), file


@pytest.mark.parametrize(
    "name, peft, flags",
    [
        ("t5", "lora", {"peft_targets": "embed_tokens,q"}),
        ("gpt2-split", "ia3", {}),
        ("bloom-split", "dora", {}),
        ("bart", "lora", {"lora_init": "pissa"}),
    ],
)
def test_a_merged_folder_computes_the_same_in_transformers(name, peft, flags, based, tmp_path):
    kind, base = based(name)
    model = kind.write_adapter(tmp_path / "ours", base, peft, **flags)
    run("merge", tmp_path / "ours", tmp_path / "out", "--base", base)
    read = getattr(transformers, kind.kind.auto).from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        expected, found = kind.logits(model), kind.stock_logits(read)
        plain = kind.stock_logits(kind.stock(kind.base()))
    size = expected.abs().max()
    assert (found - expected).abs().max() < 1e-5 * size < (plain - expected).abs().max()
    for file in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (base / file).read_bytes()


def test_merged_weights_are_rounded_once(based, tmp_path):
    kind, base = based("gpt2")
    kind.write_adapter(tmp_path / "ours", base, "lora")
    for dtype in ("fp32", "bf16"):
        run("merge", tmp_path / "ours", tmp_path / dtype, "--base", base, "--dtype", dtype)
    exact, rounded = (load_file(tmp_path / n / "model.safetensors") for n in ("fp32", "bf16"))
    assert all(torch.equal(tensor.bfloat16(), rounded[n]) for n, tensor in exact.items())


@pytest.mark.parametrize(
    "name, peft, flags, word",
    [
        ("gpt2-split", "lora", {}, "--hf-split-qkv cannot be exported"),
        ("gpt2", "lora", {"peft_targets": "wte,c_attn"}, "--peft-targets wte"),
        ("gpt2", "lora", {"lora_bias": "all"}, "--lora-bias all"),
        ("gpt2", "adapter", {}, "PEFT has no such method"),
        ("bloom", "prefix", {}, "this model's takes none"),
        ("t5", "prefix", {}, "in the decoder alone"),
    ],
)
def test_what_cannot_go_there_is_refused(name, peft, flags, word, based, tmp_path, capsys):
    kind, base = based(name)
    kind.write_adapter(tmp_path / "ours", base, peft, **flags)
    capsys.readouterr()
    given = ("export", tmp_path / "ours", tmp_path / "theirs", "--base", base)
    assert word in refused(capsys, *given)
    assert not (tmp_path / "theirs").exists()


def test_what_cannot_come_or_be_merged_is_refused(based, tmp_path, capsys):
    kind, base = based("t5")
    kind.write_adapter(tmp_path / "ours", base, "prompt")
    merge = ("merge", tmp_path / "ours", tmp_path / "out")
    capsys.readouterr()
    assert "not the base. Give it (--base)" in refused(capsys, *merge)
    assert "--peft prompt cannot be merged" in refused(capsys, *merge, "--base", base)
    assert not (tmp_path / "out").exists()
    assert "fairseq-peft merge" in refused(capsys, "to-hf", *merge[1:], "--base", base)
    run("export", tmp_path / "ours", tmp_path / "theirs", "--base", base)
    capsys.readouterr()
    given = ("import", tmp_path / "theirs", tmp_path / "back", "--base", base)
    assert "--pairs would be ignored" in refused(capsys, *given, "--pairs")
    path = tmp_path / "theirs" / "adapter_config.json"
    config = json.loads(path.read_text())
    for values, word in (
        ({"num_transformer_submodules": 2}, "expected 2 prompts of 20"),
        ({"num_transformer_submodules": 3}, "num_transformer_submodules 3 cannot be imported"),
        ({"task_type": "CAUSAL_LM"}, "SEQ_2_SEQ_LM"),
        ({"peft_type": "PREFIX_TUNING"}, "Those that can: LORA, IA3, PROMPT_TUNING"),
        ({"num_virtual_tokens": 5}, "expected (5, 16)"),
    ):
        path.write_text(json.dumps({**config, **values}))
        assert word in refused(capsys, *given)
    (base / "config.json").rename(tmp_path / "config.json")
    assert "cannot be read as the config" in refused(capsys, *given)
    (base / "config.json").write_text('{"model_type": "opera"}')
    assert "type 'opera', which is not known" in refused(capsys, *given)
    (tmp_path / "config.json").rename(base / "config.json")
    assert not (tmp_path / "back").exists()
