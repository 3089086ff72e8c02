"""Training checkpoints that hold only what trains: what they hold, and going on from them."""

from __future__ import annotations

import os
import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from runs import LAST, load, same  # noqa: E402

from fairseq_peft.adapters.base import fingerprint  # noqa: E402
from fairseq_peft.checkpoints import slim  # noqa: E402

BODY = "encoder.sentence_encoder."
HEAD = "classification_heads.sentence_classification_head."


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


def test_a_base_of_half_precision(train, base, validate):
    state = load(base)
    state["model"] = {
        key: value.half() if value.is_floating_point() else value
        for key, value in state["model"].items()
    }
    torch.save(state, base)
    folder = train("run")
    assert len(load(folder / LAST)["model"]) < 20
    done = validate(folder / LAST)
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
def test_one_epoch_and_one_are_two(train, peft):
    """Adapters and optimizer state, bit for bit, with dropout."""
    more = {"dropout": 0.1, **SETTINGS[peft]}
    if peft == "adalora":  # its schedule needs the length of the whole run
        more["adalora_total_updates"] = 18
    train("parts", peft, max_epoch=1, **more)
    parts = train("parts", peft, max_epoch=2, **more)
    whole = train("whole", peft, max_epoch=2, **more)
    assert "base" in load(parts / LAST)
    assert same(parts / LAST, whole / LAST)


def test_a_whole_run_goes_on_as_it_was_and_a_slim_one_may_become_whole(train):
    train("a", full_checkpoints=True)
    train("b")
    assert "base" not in load(train("a", max_epoch=2) / LAST)
    whole = train("b", max_epoch=2, full_checkpoints=True) / LAST
    assert same(whole, train("a", max_epoch=2) / LAST) and "base" not in load(whole)
