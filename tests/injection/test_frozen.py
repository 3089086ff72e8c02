"""Frozen parts: their dropout by an explicit flag, and the proof that they stay as they were."""

from __future__ import annotations

import json
import re

import pytest
from helpers import train_flags

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from fairseq_peft.checkpoints import slim  # noqa: E402
from fairseq_peft.injection.frozen import Guard  # noqa: E402

# --frozen-dropout


@pytest.mark.parametrize(
    "peft", ["lora", "lora,prompt", "head_only", "adapter", "ia3", "last_layers"]
)
@pytest.mark.parametrize("choice", ["on", "off"])
def test_without_dropout_training_computes_what_evaluation_does(build, batch, peft, choice):
    """But where base tensors train: there it stays."""
    model = build(peft, frozen_dropout=choice, activation_dropout=0.1)

    def scores():
        torch.manual_seed(3)
        with torch.no_grad():
            return model(batch, features_only=True, classification_head_name="head")[0]

    expected = scores()
    model.train()
    equal = torch.equal(scores(), expected)
    assert equal == (choice == "off" and peft != "last_layers")


def test_the_layers_that_train_keep_their_dropout(build):
    body = build("last_layers", frozen_dropout="off", activation_dropout=0.2).encoder
    frozen, trains = body.sentence_encoder.layers
    for layer, dropout, activation in ((frozen, 0, 0), (trains, 0.1, 0.2)):
        assert layer.dropout_module.p == layer.self_attn.dropout_module.p == dropout
        assert layer.activation_dropout_module.p == activation
    assert body.sentence_encoder.dropout_module.p == 0
    body = build("last_layers", frozen_dropout="off", last_layers_embeddings=True).encoder
    assert body.sentence_encoder.dropout_module.p == 0.1


def test_a_methods_own_dropout_stays(build, batch, logits):
    model = build("lora", frozen_dropout="off", lora_dropout=0.5)
    with torch.no_grad():
        for name in model.added:
            model.get_parameter(name).normal_()
    expected = logits(model, batch)
    assert not torch.equal(logits(model.train(), batch), expected)


@pytest.mark.parametrize(
    "peft, choice, line",
    [
        ("lora", "on", "on: the frozen embeddings and layers 0, 1 keep their dropout"),
        ("lora", "off", "off: the frozen embeddings and layers 0, 1 train without dropout"),
        ("last_layers", "off", "off: the frozen embeddings and layers 0 train without dropout"),
        ("layer_norm", "on", None),
        ("full", "on", None),
    ],
)
def test_one_line_says_what_holds(build, caplog, peft, choice, line):
    with caplog.at_level("INFO"):
        model = build(peft, frozen_dropout=choice)
    assert model.dropout_line == (f"--frozen-dropout {line}" if line else "")
    assert not caplog.messages  # a model that is built for export or prediction trains nothing


@pytest.mark.parametrize(
    "peft, choice, message",
    [
        ("full", "off", "--frozen-dropout off would be ignored: every layer has base tensors"),
        ("bitfit", "off", "--frozen-dropout off would be ignored"),
        ("lora", "no", "--frozen-dropout 'no' is unknown: give on or off"),
    ],
)
def test_bad_choices_are_refused(build, peft, choice, message):
    with pytest.raises(ValueError) as error:
        build(peft, frozen_dropout=choice)
    assert message in str(error.value)


# --verify-frozen


@pytest.mark.parametrize("peft", ["lora", "last_layers", "full"])
def test_every_frozen_tensor_is_watched_and_no_other(build, peft):
    model = build(peft)
    guard = Guard(model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert guard.num_tensors == len(frozen) + 1  # the encoder's version, a buffer
    assert Guard(build(peft)).sha256 == guard.sha256 != Guard(build(peft, seed=2)).sha256
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        if name in frozen:
            with pytest.raises(RuntimeError, match=f"1 of {guard.num_tensors} .*: {name}. Only"):
                guard.check(model)
        else:
            guard.check(model)
        with torch.no_grad():
            parameter.view(-1)[-1] -= 1e-3
            parameter.copy_(dict(build(peft).named_parameters())[name])
    guard.check(model)


def test_type_and_shape_count_too(build):
    model = build("lora")
    guard = Guard(model)
    weight = model.encoder.sentence_encoder.layers[0].fc1.weight
    weight.data = weight.data.t().contiguous().t()  # other strides, the same numbers
    guard.check(model)
    weight.data = weight.data.reshape(16, 24)
    with pytest.raises(RuntimeError, match="layers.0.fc1.weight"):
        guard.check(model)
    model = build("lora").bfloat16()
    assert Guard(model).num_tensors == guard.num_tensors  # bytes of a type that numpy lacks
    with pytest.raises(RuntimeError, match=r"have changed.*: (\S+, ){2}\S+ and \d+ more"):
        guard.check(model)


def lines(done):
    """What the log says of the frozen tensors."""
    return re.findall(r"\| (frozen: .*)", done.stdout + done.stderr)


@pytest.fixture
def flags(data_folder, base_checkpoint, tmp_path):
    def make(**more):
        own = {"from_scratch": None, "finetune_from_model": base_checkpoint, "verify_frozen": True}
        return train_flags(data_folder, tmp_path / "run", **{**own, **more})

    return make


def test_a_run_says_at_each_validation_that_nothing_has_changed(fairseq, flags, tmp_path):
    """And a run that goes on compares with its first launch."""
    done = fairseq("train", *flags(frozen_dropout="off"))
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["hyperparameters"]["frozen_dropout"] == "off"
    assert (done.stdout + done.stderr).count("layers 0, 1 train without dropout") == 1
    text = f"frozen: 42 tensors, sha256 {run['frozen_sha256'][:12]}"
    assert lines(done) == [text, f"{text}, unchanged after epoch 1"]

    done = fairseq("train", *flags(max_epoch=2, frozen_dropout="off"))
    assert done.returncode == 0, done.stderr
    assert lines(done) == [f"{text}, as at the first launch", f"{text}, unchanged after epoch 2"]
    # Who resumes without the flag does not lose what the first launch has noted.
    done = fairseq("train", *flags(max_epoch=3, frozen_dropout="off", verify_frozen=None))
    assert done.returncode == 0 and not lines(done), done.stderr
    assert json.loads((tmp_path / "run/run.json").read_text())["frozen_sha256"] in run.values()

    last = tmp_path / "run/checkpoint_last.pt"
    state = slim.read(last)
    state["model"]["encoder.sentence_encoder.layers.0.fc1.bias"][0] += 1e-3
    torch.save(state, last)
    done = fairseq("train", *flags(max_epoch=4, frozen_dropout="off"))
    assert done.returncode != 0
    assert f"says that the run began with {run['frozen_sha256'][:12]}" in done.stderr
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 3


def test_a_run_that_is_verified_from_its_second_launch_on_says_so(fairseq, flags):
    assert fairseq("train", *flags(verify_frozen=None)).returncode == 0
    done = fairseq("train", *flags(max_epoch=2))
    assert done.returncode == 0, done.stderr
    first, last = lines(done)
    assert first.endswith(", compared from here on: the first launch recorded none")
    assert last.endswith(", unchanged after epoch 2")


SABOTAGE = """
import torch, fairseq_peft
from fairseq_peft.criterions.sentence_classification import SentenceClassificationCriterion as Spied
forward = Spied.forward

def sabotage(self, model, sample, reduce=True):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("layers.1.fc2.weight", "embed_positions.weight")):
                parameter[-1, -1] += 1e-4
    return forward(self, model, sample, reduce)

Spied.forward = sabotage
"""


@pytest.mark.parametrize("verify", [True, None], ids=["verified", "unnoticed"])
def test_negative_control_a_tensor_that_somebody_changes(fairseq, flags, tmp_path, verify):
    """It stops the run before a checkpoint is written; without the flag nobody notices."""
    (tmp_path / "user").mkdir()
    (tmp_path / "user/__init__.py").write_text(SABOTAGE)
    done = fairseq("train", *flags(user_dir=tmp_path / "user", verify_frozen=verify))
    written = (tmp_path / "run/checkpoint_last.pt").exists()
    if verify is None:
        assert done.returncode == 0 and written, done.stderr
        return
    assert done.returncode != 0 and not written
    body = "encoder.sentence_encoder."
    names = f"{body}embed_positions.weight, {body}layers.1.fc2.weight."
    assert f"RuntimeError: 2 of 42 frozen tensors have changed in training: {names}" in done.stderr
