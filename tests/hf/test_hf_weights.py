"""The table of names between fairseq and Hugging Face, and configurations: neither is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from helpers import TINY  # noqa: E402

from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.hf import config, weights  # noqa: E402

BODY = "encoder.sentence_encoder."


def state(head="head"):
    """A tensor of its own for every name of a model of two layers."""
    names = [name for name in weights.TABLE if name != "encoder.lm_head"]
    found = {}
    for name in names:
        layers = (0, 1) if "{i}" in name else (0,)
        for layer in layers:
            module = name.replace("{i}", str(layer)).replace("{head}", head)
            if weights.TABLE[name] is None:
                found[module] = torch.randn(1)
                continue
            found[module + ".weight"] = torch.randn(3, 4)
            if "embed_" not in name:
                found[module + ".bias"] = torch.randn(3)
    found["encoder.lm_head.weight"] = found[BODY + "embed_tokens.weight"]
    found["encoder.lm_head.bias"] = torch.randn(3)
    return found


def test_every_name_goes_there_and_back():
    for ours, theirs in weights.TABLE.items():
        if theirs is None:
            assert weights.to_hf(ours) is None
            continue
        names = [text.replace("{i}", "11").replace("{head}", "my.head") for text in (ours, theirs)]
        for ending in ("", ".weight", ".bias"):
            first, second = (name + ending for name in names)
            assert weights.to_hf(first, "my.head") == second
            assert weights.from_hf(second, "my.head") == first


@pytest.mark.parametrize(
    "name",
    [
        BODY + "layers.0.self_attn.q_proj.lora_A",
        BODY + "layers.0.self_attn.q_proj.running_mean",
        BODY + "layer_norm.weight",
        "classification_heads.other.dense.weight",
        "decoder.embed_tokens.weight",
    ],
)
def test_a_name_that_the_table_lacks_is_no_guess(name):
    with pytest.raises(KeyError):
        weights.to_hf(name, "head")
    with pytest.raises(KeyError):
        weights.from_hf(name.replace("encoder.", "roberta."), "head")


@pytest.mark.parametrize("head", [None, "head"])
def test_weights_come_back_bit_for_bit(head):
    ours = state()
    theirs = weights.convert_to_hf(ours, head)
    back = weights.convert_from_hf(theirs, head)
    dropped = [name for name in ours if name not in back]
    lacking = "encoder.lm_head." if head else "classification_heads."
    assert all(name.startswith(lacking) or name == BODY + "version" for name in dropped)
    assert back.keys() <= ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in back)
    assert ("classifier.dense.weight" in theirs) == (head is not None)
    assert not theirs[weights.SEGMENTS].any() and theirs[weights.SEGMENTS].shape == (1, 4)


def test_an_output_matrix_of_its_own_is_kept():
    ours = {**state(), "encoder.lm_head.weight": torch.randn(3, 4)}
    back = weights.convert_from_hf(weights.convert_to_hf(ours))
    assert torch.equal(back["encoder.lm_head.weight"], ours["encoder.lm_head.weight"])


@pytest.mark.parametrize("num_rows", [1, 2])
def test_the_first_segment_is_added_to_the_positions(num_rows):
    theirs = weights.convert_to_hf(state())
    theirs[weights.SEGMENTS] = torch.tensor([[0.5], [7.0]]).repeat(1, 4)[:num_rows]
    positions = theirs["roberta.embeddings.position_embeddings.weight"]
    assert torch.equal(weights.convert_from_hf(theirs)[weights.POSITIONS], positions + 0.5)


def test_what_has_no_counterpart_is_refused():
    with pytest.raises(InputError, match="lora_A has no counterpart.*merge"):
        weights.convert_to_hf({**state(), BODY + "layers.0.fc1.lora_A": torch.ones(1)})
    theirs = weights.convert_to_hf(state())
    del theirs["roberta.embeddings.position_embeddings.weight"]
    with pytest.raises(InputError, match="no roberta.embeddings.position_embeddings.weight"):
        weights.convert_from_hf(theirs)
    theirs = {**weights.convert_to_hf(state()), "roberta.encoder.layer.0.x.weight": torch.ones(1)}
    with pytest.raises(InputError, match="x.weight has no counterpart"):
        weights.convert_from_hf(theirs)


def flags(**more):
    dropouts = {"dropout": 0.1, "attention_dropout": 0.2, "pooler_dropout": 0.3}
    return SimpleNamespace(**{**TINY, **dropouts, **more})


def test_the_configuration_says_what_fairseq_does():
    found = config.roberta(flags(), 35, ["bad", "good"])
    assert found["max_position_embeddings"] == 42 and found["layer_norm_eps"] == 1e-5
    assert found["type_vocab_size"] == 1 and found["vocab_size"] == 35
    assert (found["bos_token_id"], found["pad_token_id"], found["eos_token_id"]) == (0, 1, 2)
    dropouts = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
    assert [found[name] for name in dropouts] == [0.1, 0.2, 0.3]
    assert found["architectures"] == ["RobertaForSequenceClassification"]
    assert found["id2label"] == {"0": "bad", "1": "good"}
    assert config.roberta(flags(), 35)["architectures"] == ["RobertaForMaskedLM"]


@pytest.mark.parametrize(
    "more",
    [
        {"encoder_normalize_before": True},
        {"layernorm_embedding": False},
        {"activation_fn": "relu"},
        {"pooler_activation_fn": "relu"},
        {"classifier_head": "linear"},
        {"pooler": "mean"},
        {"encoder_layerdrop": 0.1},
        {"activation_dropout": 0.1},
    ],
)
def test_a_model_without_counterpart_is_refused(more):
    (name, value) = next(iter(more.items()))
    flag = "--" + name.replace("_", "-")
    with pytest.raises(InputError, match=f"{flag} {value}.*has no counterpart"):
        config.roberta(flags(**more), 35, ["bad", "good"])
