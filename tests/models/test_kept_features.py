"""Features kept from one validation to the next: the same bits, and fewer layers computed."""

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


def test_a_copy_keeps_nothing(build, batch, logits):
    model = build("head_only")
    model.keep_features(KeptFeatures(10**6))
    logits(model, batch)
    kept = copy.deepcopy(model).encoder.sentence_encoder.kept
    assert kept.limit_bytes == kept.num_bytes == 0


@pytest.mark.end_to_end
@pytest.mark.parametrize("peft", ["head_only", "last_layers"])
def test_a_run_is_the_same_bit_for_bit(fairseq, data_folder, base_checkpoint, tmp_path, peft):
    """And so is one that is interrupted."""

    def run(folder, max_epoch, keep):
        words = train_flags(
            *(data_folder, tmp_path / folder),
            arch=f"roberta_small_{peft}",
            from_scratch=None,
            finetune_from_model=base_checkpoint,
            max_epoch=max_epoch,
            keep_features=keep,
        )
        done = fairseq("train", *words)
        assert done.returncode == 0, done.stderr
        assert ("begins behind layer" in done.stdout + done.stderr) == bool(keep)
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        scores = [json.loads(line)["subsets"] for line in lines]
        for subset in (subset for line in scores for subset in line.values()):
            del subset["seconds"]
        return scores, slim.read(tmp_path / folder / "checkpoint_last.pt")["model"]

    expected, weights = run("anew", 3, 0)
    run("kept", 2, 500)
    found, same = run("kept", 3, 500)
    assert found == expected
    assert all(torch.equal(same[name], weights[name]) for name in weights)


def test_a_limit_below_nothing_is_refused(fairseq, data_folder, tmp_path):
    done = fairseq("train", *train_flags(data_folder, tmp_path / "run", keep_features=-1))
    assert done.returncode != 0
    assert "--keep-features -1: expected MB of memory, or 0 to keep none." in done.stderr
