"""Training checkpoints that hold only what trains, and the base that they refer to."""

from __future__ import annotations

import os
import resource
import shutil
import sys

import pytest
from helpers import PACKAGE, TOLERANCE, train_flags

from fairseq_peft import cli

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end

from fairseq_peft.adapters.base import fingerprint  # noqa: E402
from fairseq_peft.checkpoints import slim  # noqa: E402

LAST = "checkpoint_last.pt"
BODY = "encoder.sentence_encoder."
HEAD = "classification_heads.sentence_classification_head."


def load(path):
    """A checkpoint as it lies on the disk."""
    return torch.load(path, weights_only=True)


def flat(state):
    weights = dict(sorted(state["model"].items()))
    return torch.utils._pytree.tree_flatten([weights, state["last_optimizer_state"]])


def same(a, b):
    """Whether weights and optimizer state of two files are equal, bit for bit."""
    (one, form), (other, other_form) = flat(load(a)), flat(load(b))
    return form == other_form and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(one, other)
    )


@pytest.fixture
def base(base_checkpoint, tmp_path):
    (tmp_path / "base").mkdir()
    return shutil.copy(base_checkpoint, tmp_path / "base" / "model.pt")


@pytest.fixture
def train(fairseq, data_folder, base, tmp_path):
    """``train("run", "lora", ...)``: a run of one epoch; returns its save dir, or its only line of
    standard error with ``refused=True``."""

    def run(folder, peft="lora", refused=False, **more):
        given = {"from_scratch": None, "finetune_from_model": base, "peft": peft, **more}
        flags = train_flags(data_folder, tmp_path / folder, "roberta_small", **given)
        done = fairseq("train", *flags)
        if not refused:
            assert done.returncode == 0, done.stderr
            run.log = done.stdout + done.stderr
            return tmp_path / folder
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("fairseq_peft: error: ")
        return line

    return run


def validate(fairseq, data, checkpoint, *more):
    words = [data, "--user-dir", PACKAGE, "--task", "sentence_classification", "--cpu"]
    words += ["--path", checkpoint, "--valid-subset", "valid", "--batch-size", 8]
    done = fairseq("validate", *words, "--num-workers", 0, "--log-format", "simple", *more)
    return done


# What they hold

#: --peft -> the end of every name that its checkpoint may hold beside the head.
HELD = {
    "lora": ("lora_A", "lora_B"),
    "head_only": (),
    "bitfit": (".bias",),
    "last_layers": ("",),
    "lora,adapter": ("lora_A", "lora_B", "weight", "bias"),
}


@pytest.mark.parametrize("peft", HELD)
def test_a_checkpoint_holds_what_trains_and_a_reference(train, base, peft):
    folder = train("run", peft)
    for name in (LAST, "checkpoint_best.pt"):
        state, whole = load(folder / name), slim.read(str(folder / name))
        held = set(state["model"])
        assert {key for key in held if key.startswith(HEAD)} == {
            HEAD + end for end in ("dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias")
        }
        body = [key for key in held if not key.startswith("classification_heads.")]
        assert all(key.startswith(BODY) and key.endswith(HELD[peft]) for key in body), body
        # The optimizer keeps a state for each of them and for nothing else.
        assert len(state["last_optimizer_state"]["state"]) == len(held)
        entry = state["base"]
        weights = load(base)["model"]
        assert entry["path"] == str(base) and entry["sha256"] == fingerprint(weights)
        assert entry["relative"] == "../base/model.pt"
        assert not held & set(entry["names"])
        assert held | set(entry["names"]) == set(whole["model"])
        for key in entry["names"]:
            assert torch.equal(whole["model"][key], weights[key])
    assert "checkpoints hold what trains, and refer to" in train.log


@pytest.mark.parametrize(
    "more",
    [
        {"peft": "full"},
        {"full_checkpoints": True},
        {"from_scratch": True, "finetune_from_model": None},
    ],
    ids=["full", "flag", "scratch"],
)
def test_whole_where_asked_for_where_all_trains_and_without_a_base(train, base, more):
    folder = train("run", **more)
    state = load(folder / LAST)
    assert "base" not in state and "refer to" not in train.log
    assert set(load(base)["model"]) <= set(state["model"])
    # It needs nothing beside it to go on, and stays whole.
    os.remove(base)
    shutil.move(folder, folder.parent / "moved")
    more = {**more, "finetune_from_model": None, "max_epoch": 2}
    train("moved", **more)
    assert "base" not in load(folder.parent / "moved" / LAST)


def test_a_frozen_weight_that_a_method_has_corrected_is_held(train, base):
    """PiSSA takes its start out of the weight."""
    folder = train("run", "lora", lora_init="pissa")
    held, whole = load(folder / LAST)["model"], slim.read(str(folder / LAST))["model"]
    corrected = {
        f"{BODY}layers.{layer}.self_attn.{name}_proj.weight" for layer in (0, 1) for name in "qv"
    }
    assert {key for key in held if key.endswith("_proj.weight") and "layers" in key} == corrected
    weights = load(base)["model"]
    assert not any(torch.equal(whole[key], weights[key]) for key in corrected)


def test_a_frozen_weight_that_anything_else_has_changed_is_held(base, build):
    model = build("lora")
    state = {"model": load(base)["model"]}
    model.load_state_dict(dict(state["model"]))
    reference = slim.BaseRef.of(model, state, str(base))
    left_out = set(reference.leave_out({"model": model.state_dict()}, "run")["base"]["names"])
    changed = BODY + "layers.1.fc2.weight"
    assert changed in left_out
    with torch.no_grad():
        model.get_parameter(changed)[3, 5] += 1e-6
    again = reference.leave_out({"model": model.state_dict()}, "run")
    assert left_out - set(again["base"]["names"]) == {changed}
    assert torch.equal(again["model"][changed], model.state_dict()[changed])


def test_a_base_of_half_precision(train, base, fairseq, data_folder):
    state = load(base)
    state["model"] = {
        key: value.half() if value.is_floating_point() else value
        for key, value in state["model"].items()
    }
    torch.save(state, base)
    folder = train("run")
    assert len(load(folder / LAST)["model"]) < 20
    done = validate(fairseq, data_folder, folder / LAST)
    assert done.returncode == 0, done.stderr
    train("run", max_epoch=2)
    train("whole", max_epoch=2)
    assert same(folder / LAST, folder.parent / "whole" / LAST)


# Going on

SETTINGS = {
    "lora": {"lora_dropout": 0.1},
    "dora": {},
    "adalora": {"adalora_warmup": 0.2, "adalora_final": 0.1},
    "prompt": {"prompt_mlp": 5},
    "prefix": {"prefix_mlp": 6},
    "adapter": {},
    "compacter": {},
    "ia3": {},
    "bitfit": {},
    "layer_norm": {},
    "last_layers": {},
    "head_only": {},
    "lora,prompt": {"lora_init": "pissa"},
}


@pytest.mark.parametrize("peft", SETTINGS)
def test_two_and_two_epochs_are_four(train, peft):
    """Adapters and optimizer state, bit for bit, with dropout."""
    more = {"dropout": 0.1, **SETTINGS[peft]}
    if peft == "adalora":  # its schedule needs the length of the whole run
        more["adalora_total_updates"] = 36
    train("parts", peft, max_epoch=2, **more)
    parts = train("parts", peft, max_epoch=4, **more)
    whole = train("whole", peft, max_epoch=4, **more)
    assert "base" in load(parts / LAST)
    assert same(parts / LAST, whole / LAST)


def test_a_whole_run_goes_on_as_it_was_and_a_slim_one_may_become_whole(train):
    train("a", full_checkpoints=True)
    train("b")
    assert "base" not in load(train("a", max_epoch=2) / LAST)
    whole = train("b", max_epoch=2, full_checkpoints=True) / LAST
    assert same(whole, train("a", max_epoch=2) / LAST) and "base" not in load(whole)


# The base


def test_the_run_may_be_moved_with_its_base_or_have_it_beside(
    train, base, fairseq, data_folder, tmp_path
):
    train("run")
    (tmp_path / "else").mkdir()
    for name in ("run", "base"):
        shutil.move(tmp_path / name, tmp_path / "else" / name)
    assert validate(fairseq, data_folder, tmp_path / "else/run" / LAST).returncode == 0
    shutil.move(tmp_path / "else/base/model.pt", tmp_path / "else/run/model.pt")
    assert validate(fairseq, data_folder, tmp_path / "else/run" / LAST).returncode == 0
    train("else/run", finetune_from_model=None, max_epoch=2)
    assert load(tmp_path / "else/run" / LAST)["base"]["path"] == str(tmp_path / "else/run/model.pt")


def test_a_base_that_has_moved_is_named(
    train, base, fairseq, data_folder, tmp_path, capsys, monkeypatch
):
    """Everything that reads a checkpoint says so when it is not: one sentence."""
    monkeypatch.setattr(slim, "_found", {})  # of other tests in this process
    last = train("run") / LAST
    new = shutil.move(base, tmp_path / "new.pt")
    line = train("run", refused=True, max_epoch=2)
    expected = f"{last} holds only what was trained on the base {base} (sha256 "
    assert expected in line and f"there is no file {base} or {last.parent / 'model.pt'}" in line
    done = validate(fairseq, data_folder, last)
    assert done.returncode == 1 and expected in done.stderr and "Traceback" not in done.stderr
    for verb in (["merge"], ["fold"], ["export-checkpoint", "--out"]):
        assert cli.main([verb[0], str(last), *verb[1:], str(tmp_path / "out.pt")]) == 1
        printed = capsys.readouterr().err
        assert expected in printed and len(printed.splitlines()) == 1
    assert cli.main(["merge", str(last), str(tmp_path / "out.pt"), "--base", str(new)]) == 0
    train("run", finetune_from_model=new, max_epoch=2)
    assert load(last)["base"]["path"] == str(new)
    done = validate(fairseq, data_folder, last)
    assert done.returncode == 0, done.stderr
    overrides = f"{{'finetune_from_model': '{shutil.move(new, tmp_path / 'newer.pt')}'}}"
    done = validate(fairseq, data_folder, last, "--model-overrides", overrides)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("part", [BODY + "layers.0.fc1.bias", "encoder.lm_head.dense.bias"])
def test_another_base_is_refused(train, base, fairseq, data_folder, tmp_path, named, part):
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
        assert validate(fairseq, data_folder, last).returncode == 1


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
