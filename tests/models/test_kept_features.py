"""Features kept from one validation or epoch to the next: the same bits, fewer layers computed."""

from __future__ import annotations

import copy
import json

import pytest
from helpers import train_flags

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from fairseq_peft import methods  # noqa: E402
from fairseq_peft.checkpoints import slim  # noqa: E402
from fairseq_peft.models.encoder import EncoderLayer  # noqa: E402
from fairseq_peft.models.kept_features import KeptFeatures  # noqa: E402
from fairseq_peft.sharing.differences import copied  # noqa: E402

SETTINGS = {
    **{
        name: (name, {}, 0)
        for name in methods.available()
        if name not in ("head_only", "last_layers", "fusion")
    },
    "head_only": ("head_only", {}, 2),
    "last_layers": ("last_layers", {}, 1),
    "last_layers_embeddings": ("last_layers", {"last_layers_embeddings": True}, 0),
    "lora_above": ("lora", {"lora_layers": "1"}, 1),
    "adapter_above": ("adapter", {"adapter_skip_layers": 1}, 1),
    "lora,prompt_above": ("lora,prompt", {"lora_layers": "1"}, 0),
    "mean_pooler": ("head_only", {"pooler": "mean"}, 2),
}


@pytest.fixture
def computed(monkeypatch):
    """A list that gets an entry with each layer that computes."""
    found, forward = [], EncoderLayer.forward

    def counted(self, *args, **kwargs):
        found.append(self)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(EncoderLayer, "forward", counted)
    return found


@pytest.mark.parametrize(("peft", "given", "depth"), SETTINGS.values(), ids=SETTINGS)
def test_what_is_below_the_first_trained_tensor_is_computed_once(
    build, batch, logits, computed, peft, given, depth
):
    model = build(peft, **given)
    keeps = copy.deepcopy(model)
    keeps.keep_features(KeptFeatures(10**6))
    for step in range(3):
        expected = logits(model, batch)
        computed.clear()
        assert torch.equal(logits(keeps, batch), expected)
        assert len(computed) == (2 - depth if step else 2)
        with torch.no_grad():  # the optimizer steps
            for own, same in zip(model.parameters(), keeps.parameters()):
                if own.requires_grad:
                    own += 0.1 * torch.randn_like(own)
                    same.copy_(own)


@pytest.mark.parametrize(
    "setting", ["head_only", "mean_pooler", "last_layers", "lora_above", "adapter_above", "lora"]
)
def test_training_rows_are_computed_once_and_alone(build, batch, computed, setting):
    """Whatever batch a row comes in; where nothing below draws."""
    peft, given, depth = SETTINGS[setting]
    model = build(peft, **given, frozen_dropout="off", pooler_dropout=0.1)
    anew, together = copy.deepcopy(model), copy.deepcopy(model)
    model.keep_features(KeptFeatures(10**6, in_training=True))
    anew.keep_features(KeptFeatures(0, in_training=True))
    for step, rows in enumerate(([0, 1, 2, 3], [2, 0], [3, 1])):
        tokens = batch[rows][:, : int(batch[rows].ne(model.dictionary.pad()).sum(1).max())]
        found, numbers = [], []
        for each in (model, anew, together):
            computed.clear()
            found.append(gradients(each, tokens))
            numbers.append(len(computed))
        first = 0 if step else depth * len(rows)
        assert numbers == [2 - depth + first, 2 - depth + depth * len(rows), 2]
        own, same, other = found
        assert own and own.keys() == same.keys() == other.keys()
        assert all(torch.equal(own[name], same[name]) for name in own)
        assert all(torch.allclose(own[name], other[name], atol=1e-6) for name in own)


def gradients(model, tokens):
    """Those of a training pass, by name."""
    torch.manual_seed(1)
    scores = model.train()(tokens, features_only=True, classification_head_name="head")[0]
    model.zero_grad()
    scores.square().sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_where_something_draws_training_computes_all(build, batch, computed):
    for given in ({"frozen_dropout": "on", "dropout": 0.1}, {"encoder_layerdrop": 0.5}):
        model = build("head_only", **{"frozen_dropout": "off", **given})
        model.keep_features(KeptFeatures(10**6, in_training=True))
        computed.clear()
        for _ in range(20):
            gradients(model, batch)
        assert len(computed) >= 20 and not model.encoder.sentence_encoder.kept.num_bytes


def test_another_batch_or_another_padding_is_another(build, batch, logits, computed):
    model = build("head_only")
    model.keep_features(KeptFeatures(10**6))
    padded = torch.nn.functional.pad(batch, (0, 8), value=model.dictionary.pad())
    for tokens in (batch, batch[:2], batch[[1, 0]], padded):
        computed.clear()
        logits(model, tokens)
        assert len(computed) == 2
    computed.clear()
    logits(model, batch)
    model(batch, features_only=True)  # every position of the last layer, not the first alone
    assert len(computed) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda model: torch.nn.init.normal_(model.encoder.sentence_encoder.layers[0].fc1.weight),
        lambda model: model.encoder.sentence_encoder.embed_tokens.weight.requires_grad_(True),
        lambda model: setattr(
            model.encoder.sentence_encoder.layers[1].fc2, "bias", torch.nn.Parameter(torch.ones(16))
        ),
        lambda model: model.train(),
        lambda model: model.encoder.sentence_encoder.layers[0].register_forward_hook(print),
        lambda model: setattr(model.encoder.sentence_encoder, "kept", KeptFeatures()),
    ],
    ids=["written", "trains", "replaced", "training", "hooked", "off"],
)
def test_what_may_have_changed_is_computed_anew(build, batch, logits, computed, change, capsys):
    model = build("head_only", frozen_dropout="off")
    fresh = copy.deepcopy(model)
    model.keep_features(KeptFeatures(10**6))
    logits(model, batch)
    for own in (model, fresh):
        torch.manual_seed(1)
        change(own)
    computed.clear()
    assert torch.equal(logits(model, batch), logits(fresh, batch))
    assert len(computed) == 4


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda encoder: setattr(encoder, "half_dtype", torch.bfloat16),
        lambda encoder: setattr(encoder, "embed_scale", 2.0),
        lambda encoder: setattr(encoder.layers[0], "activation_fn", torch.relu),
        lambda encoder: setattr(encoder.layers[1].final_layer_norm, "eps", 0.5),
    ],
    ids=["precision", "scale", "activation", "eps"],
)
def test_models_of_other_settings_do_not_share(build, batch, logits, change, training):
    """Around the same tensors, with one memory, as members of one process have it."""
    first = build("head_only", frozen_dropout="off").train(training)
    first.keep_features(KeptFeatures(10**6, in_training=True))
    other, by_itself = copied(first), copied(first)
    other.encoder.sentence_encoder.kept = first.encoder.sentence_encoder.kept
    by_itself.keep_features(KeptFeatures(10**6, in_training=True))
    for model in (other, by_itself):
        change(model.encoder.sentence_encoder)
    for _ in range(2):
        assert not torch.equal(logits(first, batch), logits(by_itself, batch))
        assert torch.equal(logits(other, batch), logits(by_itself, batch))


def test_memory_stays_below_the_limit(build, batch, logits, computed):
    model = build("head_only", pooler="mean")
    one = batch.numel() * 16 * 4  # (B, T, C) in fp32
    model.keep_features(KeptFeatures(2 * one + 1))
    for _ in range(2):
        computed.clear()
        for number in range(4):
            logits(model, batch.roll(number, 0))
    kept = model.encoder.sentence_encoder.kept
    assert kept.num_bytes == 2 * one and len(computed) == 2 * 2


@pytest.mark.parametrize("pooler", ["first", "mean"])
def test_what_memory_has_no_room_for_is_kept_on_disk(
    build, batch, logits, computed, tmp_path, pooler
):
    model = build("head_only", pooler=pooler)
    rows = 1 if pooler == "first" else batch.shape[1]
    one = len(batch) * rows * 16 * 4  # in fp32
    model.keep_features(KeptFeatures(one, folder=tmp_path, disk_bytes=2 * one))
    rolled = [batch.roll(number, 0) for number in range(4)]
    expected = [logits(model, tokens) for tokens in rolled]
    computed.clear()
    for _ in range(2):
        assert all(torch.equal(logits(model, b), e) for b, e in zip(rolled, expected))
    kept = model.encoder.sentence_encoder.kept
    assert (kept.num_bytes, kept.disk.num_bytes, len(computed)) == (one, 2 * one, 2 * 2)
    assert not list(tmp_path.iterdir())  # the file has no name, so nothing can be left behind


def test_a_full_disk_costs_time_alone(
    build, batch, logits, computed, tmp_path, monkeypatch, caplog
):
    model = build("head_only")
    model.keep_features(KeptFeatures(0, folder=tmp_path, disk_bytes=10**6))
    kept = model.encoder.sentence_encoder.kept

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    expected = logits(model, batch)
    for _ in range(3):
        assert torch.equal(logits(model, batch), expected)
    assert len(computed) == 4 * 2 and kept.disk.num_bytes == 0
    assert len([line for line in caplog.messages if "No space left" in line]) == 1


def test_it_is_told_once_that_not_all_has_room(build, batch, logits, caplog):
    model = build("head_only")
    model.keep_features(KeptFeatures(1))
    caplog.set_level("INFO")
    for number in range(3):
        logits(model, batch.roll(number, 0))
    told = [line for line in caplog.messages if "--keep-features" in line and "no room" in line]
    assert len(told) == 1


def test_a_copy_keeps_nothing(build, batch, logits):
    model = build("head_only")
    model.keep_features(KeptFeatures(10**6))
    logits(model, batch)
    kept = copy.deepcopy(model).encoder.sentence_encoder.kept
    assert kept.limit_bytes == kept.num_bytes == 0 and kept.disk is None


@pytest.mark.end_to_end
@pytest.mark.parametrize(("peft", "dropout"), [("head_only", "off"), ("last_layers", "on")])
def test_a_run_is_the_same_bit_for_bit(
    fairseq, data_folder, base_checkpoint, tmp_path, peft, dropout
):
    """And so is one that is interrupted; with the frozen dropout off in training, too."""

    def run(folder, max_epoch, keep, on_disk=0):
        words = train_flags(
            *(data_folder, tmp_path / folder),
            arch=f"roberta_small_{peft}",
            from_scratch=None,
            finetune_from_model=base_checkpoint,
            max_epoch=max_epoch,
            keep_features=keep,
            keep_features_on_disk=on_disk,
            frozen_dropout=dropout,
        )
        done = fairseq("train", *words)
        assert done.returncode == 0, done.stderr
        told = f"each {'epoch' if dropout == 'off' else 'validation'} but the first begins behind"
        assert (told in done.stdout + done.stderr) == bool(keep or on_disk)
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        scores = [json.loads(line)["subsets"] for line in lines]
        for subset in (subset for line in scores for subset in line.values()):
            del subset["seconds"]
        return scores, slim.read(tmp_path / folder / "checkpoint_last.pt")["model"]

    expected, weights = run("anew", 3, 0)
    run("kept", 2, 500)
    found, same = run("kept", 3, 0, on_disk=100)
    assert found == expected
    assert all(torch.equal(same[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("flag", "of"), [("keep_features", "memory"), ("keep_features_on_disk", "disk")]
)
def test_a_limit_below_nothing_is_refused(fairseq, data_folder, tmp_path, flag, of):
    done = fairseq("train", *train_flags(data_folder, tmp_path / "run", **{flag: -1}))
    assert done.returncode != 0
    name = "--" + flag.replace("_", "-")
    assert f"{name} -1: expected MB of {of}, or 0 to keep none there." in done.stderr
