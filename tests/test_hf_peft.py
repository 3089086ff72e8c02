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
from hf_cases import CASES  # noqa: E402

from fairseq_peft import artifact, cli  # noqa: E402


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
