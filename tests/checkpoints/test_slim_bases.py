"""The base that a slim checkpoint refers to: moved, gone, changed; who reads it; writing it."""

from __future__ import annotations

import os
import resource
import shutil
import sys

import pytest
from helpers import TOLERANCE, train_flags

from fairseq_peft import cli

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from runs import LAST, load, same  # noqa: E402

from fairseq_peft.checkpoints import slim  # noqa: E402

BODY = "encoder.sentence_encoder."
HEAD = "classification_heads.sentence_classification_head."


# The base


def test_the_run_may_be_moved_with_its_base_or_have_it_beside(train, base, validate, tmp_path):
    train("run")
    (tmp_path / "else").mkdir()
    for name in ("run", "base"):
        shutil.move(tmp_path / name, tmp_path / "else" / name)
    assert validate(tmp_path / "else/run" / LAST).returncode == 0
    shutil.move(tmp_path / "else/base/model.pt", tmp_path / "else/run/model.pt")
    assert validate(tmp_path / "else/run" / LAST).returncode == 0
    train("else/run", finetune_from_model=None, max_epoch=2)
    assert load(tmp_path / "else/run" / LAST)["base"]["path"] == str(tmp_path / "else/run/model.pt")


def test_a_base_that_has_moved_is_named(train, base, validate, tmp_path, capsys, monkeypatch):
    """Everything that reads a checkpoint says so when it is not: one sentence."""
    monkeypatch.setattr(slim, "_found", {})  # of other tests in this process
    last = train("run") / LAST
    new = shutil.move(base, tmp_path / "new.pt")
    line = train("run", refused=True, max_epoch=2)
    expected = f"{last} holds only what was trained on the base {base} (sha256 "
    assert expected in line and f"there is no file {base} or {last.parent / 'model.pt'}" in line
    done = validate(last)
    assert done.returncode == 1 and expected in done.stderr and "Traceback" not in done.stderr
    for verb in (["merge"], ["fold"], ["export-checkpoint", "--out"]):
        assert cli.main([verb[0], str(last), *verb[1:], str(tmp_path / "out.pt")]) == 1
        printed = capsys.readouterr().err
        assert expected in printed and len(printed.splitlines()) == 1
    assert cli.main(["merge", str(last), str(tmp_path / "out.pt"), "--base", str(new)]) == 0
    train("run", finetune_from_model=new, max_epoch=2)
    assert load(last)["base"]["path"] == str(new)
    done = validate(last)
    assert done.returncode == 0, done.stderr
    overrides = f"{{'finetune_from_model': '{shutil.move(new, tmp_path / 'newer.pt')}'}}"
    done = validate(last, "--model-overrides", overrides)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("part", [BODY + "layers.0.fc1.bias", "encoder.lm_head.dense.bias"])
def test_another_base_is_refused(train, base, validate, tmp_path, named, part):
    """One bit of one tensor that the checkpoint leaves out."""
    last = train("run") / LAST
    state = load(base)
    state["model"][part].view(torch.int32)[0] ^= 1
    other = tmp_path / "other.pt" if named else base
    torch.save(state, other)
    line = train("run", refused=True, max_epoch=2, finetune_from_model=other if named else None)
    reason = "has another LM head" if "lm_head" in part else "is another one (sha256 "
    assert f"but {other} {reason}" in line
    if not named:
        assert validate(last).returncode == 1


def test_a_slim_checkpoint_as_the_base_of_another_run(train, base, tmp_path):
    """The second run refers to the first one's base, and holds what the first one has trained."""
    first = train("first", "bitfit") / LAST
    bits = slim.read(str(first))["model"]
    second = train("second", "head_only", finetune_from_model=first) / LAST
    entry, held = load(second)["base"], load(second)["model"]
    assert entry["path"] == str(base)
    moved = {key for key in bits if key.endswith(".bias") and key in held} - {
        key for key in held if key.startswith(HEAD)
    }
    assert moved and all(torch.equal(held[key], bits[key]) for key in moved)
    shutil.rmtree(first.parent)
    found = slim.read(str(second))["model"]
    assert all(torch.equal(found[key], value) for key, value in bits.items() if HEAD not in key)
    train("second", "head_only", finetune_from_model=None, max_epoch=2)


def test_a_base_among_the_runs_own_checkpoints_is_not_relied_on(train, base, tmp_path):
    """checkpoint_best.pt would take the place of what checkpoint_last.pt refers to."""
    (tmp_path / "run").mkdir()
    best = shutil.move(base, tmp_path / "run/checkpoint_best.pt")
    folder = train("run", finetune_from_model=best)
    assert "base" not in load(folder / LAST)
    assert "checkpoints hold the whole model" in train.log


@pytest.mark.parametrize("damage", ["names", "kind", "none", "name"])
def test_a_damaged_reference_is_refused(train, damage):
    last = train("run") / LAST
    state = load(last)
    if damage == "names":
        state["base"]["names"] = state["base"]["names"][:-1]
    else:
        state["base"] = {"kind": ["base"], "none": {}, "name": {**state["base"], "names": [["a"]]}}[
            damage
        ]
    torch.save(state, last)
    line = train("run", refused=True, max_epoch=2)
    assert str(last) in line


# Readers

HUB = """
import fairseq_peft.plugin, json, torch
from fairseq import checkpoint_utils
from fairseq.models.roberta import RobertaModel
(model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task([{path!r}])
hub = RobertaModel.from_pretrained({folder!r}, {name!r}, {data!r}, bpe=None)
tokens = torch.tensor([[0, 5, 9, 7, 2], [0, 8, 4, 2, 1]])
head = cfg.task.classification_head_name
with torch.no_grad():
    a = model.eval()(tokens, features_only=True, classification_head_name=head)[0]
    b = hub.eval().predict(head, tokens, return_logits=True)
torch.save([a, b], {out!r})
"""


def test_loading_without_training_gives_the_same_logits(train, fairseq, data_folder, tmp_path):
    found = []
    for name, whole in (("slim", False), ("whole", True)):
        folder = train(name, full_checkpoints=whole)
        given = {"folder": str(folder), "name": LAST, "data": str(data_folder)}
        out = str(tmp_path / f"{name}.logits")
        script = HUB.format(path=str(folder / LAST), out=out, **given)
        done = fairseq("python", script)
        assert done.returncode == 0, done.stderr
        found += torch.load(out, weights_only=True)
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])
    assert (found[0] - found[1]).abs().max() < TOLERANCE["fp32"]


def test_verbs_read_slim_checkpoints(train, tmp_path, capsys):
    slim_run, whole_run = train("slim"), train("whole", full_checkpoints=True)
    for verb in (["merge"], ["export-checkpoint", "--out"]):
        states = []
        for folder in (slim_run, whole_run):
            out = tmp_path / f"{folder.name}-{verb[0]}.pt"
            assert cli.main([verb[0], str(folder / LAST), *verb[1:], str(out)]) == 0
            states.append(load(out))
        capsys.readouterr()
        one, other = (state["model"] for state in states)
        assert set(one) == set(other)
        assert all(torch.equal(one[key], other[key]) for key in one)
        assert not any("base" in state for state in states)


# Writing


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of files")
@pytest.mark.parametrize("limit", [2_000, 30_000])
def test_a_disk_that_is_full_is_one_sentence(train, fairseq, data_folder, base, tmp_path, limit):
    """A limit on the size of files stands in for it: writing fails in the same way."""
    last = train("run") / LAST
    before = last.read_bytes()
    given = {"from_scratch": None, "finetune_from_model": base, "max_epoch": 2}
    words = train_flags(data_folder, tmp_path / "run", "roberta_small_lora", **given)
    script = f"""
import resource, sys, fairseq_peft.plugin
from fairseq import checkpoint_utils
from fairseq_cli import train
save = checkpoint_utils.torch_persistent_save
def limited(*args, **more):
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {resource.RLIM_INFINITY}))
    save(*args, **more)
checkpoint_utils.torch_persistent_save = limited
sys.argv = ["fairseq-train", *{[str(word) for word in words]!r}]
train.cli_main()
"""
    done = fairseq("python", script)
    assert done.returncode == 1
    assert f"{last.parent}/checkpoint_" in done.stderr and "Traceback" not in done.stderr
    assert "cannot be written (File too large)" in done.stderr
    assert last.read_bytes() == before
    assert not [name for name in os.listdir(last.parent) if name.endswith(".tmp")]
    train("run", max_epoch=2)
    assert same(last, train("whole", max_epoch=2) / LAST)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_is_full_for_the_log_is_one_sentence(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").symlink_to("/dev/full")
    assert "No space left on device" in train("run", refused=True)


def test_a_folder_that_takes_no_files_is_one_sentence(train, tmp_path):
    (tmp_path / "file").touch()
    line = train("file/run", refused=True)
    assert "Not a directory" in line and "--save-dir" in line
