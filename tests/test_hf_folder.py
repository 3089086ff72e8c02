"""``fairseq-peft export`` and ``import``: folders of Hugging Face PEFT, without that library.

tests/parity/test_hf_folder.py has the library's half.
"""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import adapter_folders as adapters  # noqa: E402
import safetensors.torch  # noqa: E402
from helpers import TINY  # noqa: E402

from fairseq_peft import artifact, cli  # noqa: E402

ALL = "q_proj,k_proj,v_proj,out_proj,fc1,fc2"
LAYER = "roberta.encoder.layer.{}."
#: case -> (--peft, its flags, what adapter_config.json must say beside peft_type).
CASES = {
    "lora": ("lora", {}, {"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]}),
    "rslora": ("lora", {"lora_rslora": True, "lora_dropout": 0.25}, {"use_rslora": True}),
    "all linear maps": (
        "lora",
        {"peft_targets": "all-linear", "lora_rank": 2, "lora_alpha": 2.5},
        {
            "lora_alpha": 2.5,
            "target_modules": [
                *("query", "key", "value", "attention.output.dense"),
                *("intermediate.dense", "output.dense"),
            ],
        },
    ),
    # The end of the name, output.dense, would also mean attention.output.dense.
    "fc2": (
        "lora",
        {"peft_targets": "fc2"},
        {"target_modules": [LAYER.format(i) + "output.dense" for i in range(2)]},
    ),
    "one layer": (
        "lora",
        {"lora_layers": "1"},
        {"target_modules": [LAYER.format(1) + f"attention.self.{n}" for n in ("query", "value")]},
    ),
    "embedding": (
        "lora",
        {"peft_targets": "embed_tokens,q_proj"},
        {"target_modules": ["query", "word_embeddings"]},
    ),
    "patterns": (
        "lora",
        {
            "peft_targets": ALL,
            "lora_rank_pattern": "layers.0.self_attn.q_proj=4,fc2=3",
            "lora_alpha_pattern": "v_proj=5,out_proj=1.5",
        },
        {
            "rank_pattern": {
                LAYER.format(0) + "attention.self.query": 4,
                **{LAYER.format(i) + "output.dense": 3 for i in range(2)},
            },
            "alpha_pattern": {"value": 5, "attention.output.dense": 1.5},
        },
    ),
    "biases of maps": ("lora", {"lora_bias": "lora_only"}, {"bias": "lora_only"}),
    "all biases": ("lora", {"lora_bias": "all"}, {"bias": "all"}),
    "pissa": ("lora", {"lora_init": "pissa"}, {"init_lora_weights": "pissa"}),
    "olora": ("lora", {"lora_init": "olora", "lora_rank": 3}, {"init_lora_weights": "olora"}),
    "dora": ("dora", {"peft_targets": ALL}, {"use_dora": True}),
    "ia3": (
        "ia3",
        {},
        {
            "target_modules": [
                LAYER.format(i) + name
                for i in range(2)
                for name in ("attention.self.key", "attention.self.value", "output.dense")
            ],
            "feedforward_modules": [LAYER.format(i) + "output.dense" for i in range(2)],
        },
    ),
    "ia3 as peft": (
        "ia3",
        {"ia3_targets": "k_proj,v_proj,out_proj,fc2", "ia3_feedforward": "out_proj,fc2"},
        {
            "target_modules": ["key", "value", "attention.output.dense", "output.dense"],
            "feedforward_modules": ["attention.output.dense", "output.dense"],
        },
    ),
    # As a loose end, output.dense would also make attention.output.dense feed-forward.
    "ia3 behind out_proj": (
        "ia3",
        {"ia3_targets": "out_proj,fc2"},
        {"feedforward_modules": [LAYER.format(i) + "output.dense" for i in range(2)]},
    ),
    "ia3 on outputs": (
        "ia3",
        {"ia3_targets": "k_proj", "ia3_feedforward": "none"},
        {"target_modules": ["key"], "feedforward_modules": []},
    ),
    "prompt": (
        "prompt",
        {"prompt_num_tokens": 4, "prompt_placement": "before_bos"},
        {"num_virtual_tokens": 4, "token_dim": 16, "num_transformer_submodules": 1},
    ),
    "prefix": (
        "prefix",
        {"prefix_num_tokens": 4, "prefix_positions": "reserved", "prefix_mlp": 6},
        {"num_virtual_tokens": 4, "num_layers": 2, "num_attention_heads": 4},
    ),
}


@pytest.fixture(scope="module")
def base(dictionary, tmp_path_factory):
    """The file of a base, with its dictionary and a sentencepiece model beside it."""
    folder = tmp_path_factory.mktemp("base")
    dictionary.save(str(folder / "dict.txt"))
    (folder / artifact.TOKENIZER).write_bytes(b"pieces")
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


def run(*words):
    assert cli.main([str(word) for word in words]) == 0


def refused(capsys, *words):
    assert cli.main([str(word) for word in words]) == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert printed.out == "" and line.startswith(f"fairseq-peft {words[0]}: error: ")
    return line


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
    from fairseq_peft import checkpoints

    found, model = checkpoints.from_folder(folder, base)
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
    before, after = artifact.read(ours), artifact.read(tmp_path / "ours")
    assert after.description["labels"] == ["bad", "good"]
    other = {f".{adapters.HEAD}.": ".sentence_classification_head."}
    same({renamed(name, other): tensor for name, tensor in before.tensors.items()}, after.tensors)
    assert torch.equal(scores(ours, base, batch), scores(tmp_path / "ours", base, batch))
    run("export", tmp_path / "ours", tmp_path / "again", "--base", base)
    for name in ("adapter_config.json", "labels.json", "adapter_model.safetensors"):
        files = [tmp_path / folder / name for folder in ("theirs", "again")]
        assert files[0].read_bytes() == files[1].read_bytes(), name
