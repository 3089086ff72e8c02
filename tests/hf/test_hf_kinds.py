"""What a row has, a class, labels or a number, goes to Hugging Face's side and comes back."""

from __future__ import annotations

import json

import pytest
from verbs import refused, run

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import hf_models  # noqa: E402
from kinds import write_labels, write_numbers  # noqa: E402

from fairseq_peft.adapters import folder as adapter_folder  # noqa: E402
from fairseq_peft.hf import base_model  # noqa: E402

#: Kind -> names of the outputs, what config.json says of them.
KINDS = {
    "classes": (["bad", "good"], None),
    "labels": (["bad", "good", "long"], "multi_label_classification"),
    "number": (["number"], "regression"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_checkpoint(kind, folder, tmp_path):
    labels, problem = KINDS[kind]
    words = base_model.read(folder / "lm.pt", folder / "dict.txt").dictionary
    path = hf_models.write_checkpoint(folder / f"{kind}.pt", words, len(labels))
    state = torch.load(path, weights_only=False)
    state["task_state"] = {"labels": labels, **({} if problem is None else {"kind": kind})}
    torch.save(state, path)
    run("to-hf", path, tmp_path / "hf", "--no-check")
    assert json.loads((tmp_path / "hf" / "config.json").read_text()).get("problem_type") == problem
    run("from-hf", tmp_path / "hf", tmp_path / "back", "--no-check")
    back = torch.load(tmp_path / "back" / "model.pt", weights_only=False)["task_state"]
    assert back == state["task_state"]


@pytest.mark.parametrize("kind", KINDS)
def test_of_an_adapter_folder(kind, folder, tmp_path):
    import adapter_folders

    labels, problem = KINDS[kind]
    base = base_model.read(folder / "lm.pt", folder / "dict.txt")
    model = adapter_folders.perturbed(base.dictionary, base.weights, num_classes=len(labels))
    told = {"labels": labels, **({} if problem is None else {"kind": kind})}
    ours = adapter_folders.write(
        tmp_path / "adapter", model, base.weights, folder / "lm.pt", **told
    )
    run("export", ours, tmp_path / "peft", "--base", folder / "lm.pt")
    there = json.loads((tmp_path / "peft" / "labels.json").read_text())
    assert there.get("problem_type") == problem
    run("import", tmp_path / "peft", tmp_path / "back", "--base", folder / "lm.pt")
    back = adapter_folder.read(tmp_path / "back").description
    assert {key: back[key] for key in ("labels", "kind") if key in back} == told


def test_a_head_of_one_output_is_for_a_number(folder, tmp_path, capsys):
    """As the library takes it where its configuration does not say; what nobody knows is told."""
    words = base_model.read(folder / "lm.pt", folder / "dict.txt").dictionary
    hf_models.write_checkpoint(folder / "one.pt", words, 1)
    run("to-hf", folder / "one.pt", tmp_path / "hf", "--no-check")
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("problem_type") == "regression"
    path.write_text(json.dumps(config))
    run("from-hf", tmp_path / "hf", tmp_path / "back", "--no-check")
    told = torch.load(tmp_path / "back" / "model.pt", weights_only=False)["task_state"]
    assert told == {"labels": ["number"], "kind": "number"}
    path.write_text(json.dumps({**config, "problem_type": "ranking"}))
    capsys.readouterr()
    line = refused(capsys, "from-hf", tmp_path / "hf", tmp_path / "x", "--no-check")
    assert "problem_type 'ranking' is unknown; expected one of single_label_" in line


def test_what_knows_classes_alone_says_so(folder, tmp_path, capsys):
    for kind, write in (("labels", write_labels), ("number", write_numbers)):
        data = write(tmp_path / kind)
        line = refused(capsys, "probe", data, "--random")
        assert f"is of the kind '{kind}', and the probe knows one class a row" in line
        line = refused(capsys, "finetune-hf", data, folder, "--save-dir", tmp_path / "run")
        assert f"is of the kind '{kind}', and finetune-hf knows one class a row" in line
    assert not (tmp_path / "run").exists()
