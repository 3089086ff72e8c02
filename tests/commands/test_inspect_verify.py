"""``fairseq-peft inspect`` and ``verify``, and files that hold code."""

from __future__ import annotations

import argparse
import json
import os
import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import adapter_folders  # noqa: E402
from helpers import train_flags  # noqa: E402
from verbs import refused  # noqa: E402

from fairseq_peft import cli  # noqa: E402


@pytest.fixture(scope="module")
def base(dictionary, tmp_path_factory):
    return adapter_folders.save_base(
        tmp_path_factory.mktemp("base") / "base.pt", adapter_folders.base_state(dictionary)
    )


@pytest.fixture(scope="module")
def adapter(dictionary, base, tmp_path_factory):
    weights = torch.load(base, weights_only=True)["model"]
    model = adapter_folders.perturbed(dictionary, weights, "lora,bitfit")
    return adapter_folders.write(tmp_path_factory.mktemp("run") / "adapter", model, weights, base)


def shown(capsys, *words):
    assert cli.main([str(word) for word in words]) == 0
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.out


def test_inspect_shows_a_folder(adapter, base, capsys):
    rows = json.loads(shown(capsys, "inspect", adapter, "--json"))
    assert rows["kind"] == "adapter" and rows["method"] == "lora+bitfit"
    assert rows["knobs"]["lora"]["rank"] == 8 and rows["base"]["path"] == str(base)
    assert rows["metrics"]["accuracy"] == 0.75 and rows["head"] == "roberta, 2 classes (bad, good)"
    assert "layers.0.self_attn.q_proj" in rows["targets"]
    head = (16 * 16 + 16) + (2 * 16 + 2)
    assert rows["head alone"] == f"4 tensors, {head} numbers, {4 * head:,} bytes"
    text = shown(capsys, "inspect", adapter)
    assert "lora+bitfit" in text and "accuracy" in text and rows["base"]["sha256"] in text


def test_inspect_shows_checkpoints(fairseq, data_folder, base_checkpoint, tmp_path, capsys):
    """A slim one, as it lies on the disk, and a published one with its flags in a Namespace."""
    more = {"finetune_from_model": base_checkpoint, "from_scratch": None}
    done = fairseq("train", *train_flags(data_folder, tmp_path, **more))
    assert done.returncode == 0, done.stderr
    rows = json.loads(shown(capsys, "inspect", tmp_path / "checkpoint_best.pt", "--json"))
    assert rows["kind"] == "checkpoint that refers to a base" and rows["method"] == "lora"
    assert rows["base"]["path"] == str(base_checkpoint) and rows["labels"] == ["bad", "good"]
    assert rows["updates"] == 9 and rows["knobs"]["rank"] == 8 and rows["optimizer state"] == "yes"
    rows = json.loads(shown(capsys, "inspect", base_checkpoint, "--json"))
    assert rows["kind"] == "checkpoint of a whole model" and rows["head alone"].startswith("0 ten")
    state = {"encoder.x": torch.zeros(3)}
    flags = argparse.Namespace(arch="roberta_base")
    published = adapter_folders.save_base(tmp_path / "model.pt", state, args=flags)
    rows = json.loads(shown(capsys, "inspect", published, "--json"))
    assert rows["architecture"] == "roberta_base" and "method" not in rows
    assert rows["with the head"] == "1 tensors, 3 numbers, 12 bytes"


def test_inspect_refuses_what_is_neither(tmp_path, capsys):
    assert "does not exist" in refused(capsys, "inspect", tmp_path / "none")
    assert "is no adapter folder" in refused(capsys, "inspect", tmp_path)
    (tmp_path / "text.pt").write_text("words")
    assert "text.pt" in refused(capsys, "inspect", tmp_path / "text.pt")


def test_verify_with_and_without_the_base(adapter, base, dictionary, tmp_path, capsys):
    assert "not looked at, give --base" in shown(capsys, "verify", adapter)
    assert f"base: {base} fits" in shown(capsys, "verify", adapter, "--base", base)
    other = adapter_folders.save_base(
        tmp_path / "other.pt", adapter_folders.base_state(dictionary, seed=5)
    )
    line = refused(capsys, "verify", adapter, "--base", other)
    assert "This is not the base" in line and "expected" in line
    words = ("verify", adapter, "--base", other, "--allow-other-base")
    assert "fits" in shown(capsys, *words)
    assert "does not exist" in refused(capsys, "verify", adapter, "--base", tmp_path / "none.pt")


def test_verify_looks_at_the_dictionary_beside_the_base(adapter, base, tmp_path, capsys):
    shutil.copy(base, tmp_path / "base.pt")
    shutil.copy(adapter / "dict.txt", tmp_path / "dict.txt")
    assert "fits" in shown(capsys, "verify", adapter, "--base", tmp_path / "base.pt")
    lines = (adapter / "dict.txt").read_text().splitlines()
    (tmp_path / "dict.txt").write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    line = refused(capsys, "verify", adapter, "--base", tmp_path / "base.pt")
    assert "comes with another dictionary: token 4 is 'w1'" in line


# ---- Files that hold code --------------------------------------------------------------------


class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("verb", ["inspect", "verify", "merge", "fold", "export-checkpoint"])
def test_a_payload_is_refused_and_does_not_run(adapter, tmp_path, monkeypatch, capsys, verb):
    """Wherever it hides: beside the weights, or as one of them."""
    monkeypatch.chdir(tmp_path)
    words = {"verify": [adapter, "--base"], "export-checkpoint": ["--out", "out.pt"]}.get(verb, [])
    for number, place in enumerate(({"cfg": Payload()}, {"model": {"x": Payload()}})):
        path = adapter_folders.save_base(tmp_path / f"{number}.pt", {}, **place)
        out = ["out.pt"] if verb in ("merge", "fold") else []
        line = refused(capsys, verb, *words, path, *out)
        assert f"{number}.pt" in line and "could run code" in line and "--trust-checkpoint" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.pt", "1.pt"]


def test_a_payload_in_a_folder_is_no_safetensors(adapter, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(adapter, tmp_path / "adapter")
    torch.save({"x": Payload()}, copy / "adapter.safetensors")
    assert "adapter.safetensors" in refused(capsys, "verify", copy)
    assert not (tmp_path / "ran").exists()


def test_trust_opens_it_loudly_and_makes_a_plain_file(tmp_path, monkeypatch, capsys, caplog):
    from omegaconf import OmegaConf

    monkeypatch.chdir(tmp_path)
    cfg = OmegaConf.create({"model": {"arch": "roberta_base"}, "task": None})
    state = {"encoder.x": torch.ones(2)}
    path = adapter_folders.save_base(tmp_path / "old.pt", state, cfg=cfg, criterion=Payload())
    refused(capsys, "export-checkpoint", path, "--out", "new.pt")
    assert not (tmp_path / "ran").exists() and not caplog.records
    words = ["export-checkpoint", str(path), "--out", "new.pt", "--trust-checkpoint"]
    assert cli.main(words) == 0
    assert (tmp_path / "ran").exists()  # it was said to be trusted
    assert any("--trust-checkpoint" in r.getMessage() for r in caplog.records)
    plain = torch.load("new.pt", weights_only=True)
    assert plain["cfg"]["model"] == {"arch": "roberta_base"} and plain["criterion"] is None
    assert plain["model"]["encoder.x"].tolist() == [1, 1]


@pytest.mark.parametrize("safe", [True, False], ids=["torch's default", "torch before 2.6"])
def test_fairseqs_own_loader_refuses_it_too(tmp_path, monkeypatch, safe):
    """Without the loader's refusal, torch before 2.6 would run it."""
    from fairseq import checkpoint_utils

    from fairseq_peft import plugin  # noqa: F401
    from fairseq_peft.checkpoints import file as checkpoint_file  # noqa: F401

    path = adapter_folders.save_base(tmp_path / "bad.pt", {}, cfg=Payload())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint_file, "SAFE_BY_DEFAULT", safe)
    if not safe:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # the default of old
    with pytest.raises(ValueError, match="could run code"):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    assert not (tmp_path / "ran").exists()


def test_a_base_with_a_payload_never_starts_a_run(fairseq, data_folder, tmp_path):
    path = adapter_folders.save_base(tmp_path / "bad.pt", {}, cfg=Payload())
    more = {"finetune_from_model": path, "from_scratch": None}
    done = fairseq("train", *train_flags(data_folder, tmp_path / "run", **more))
    assert done.returncode == 1 and "could run code" in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.rglob("ran"))
