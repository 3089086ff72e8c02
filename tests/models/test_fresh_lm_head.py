"""A base without an LM head: a classifier does not miss it, a language model gets a fresh one."""

from __future__ import annotations

import logging

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from fairseq_peft.checkpoints import slim  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402

LM_HEAD = "encoder.lm_head."
WORDS = "encoder.sentence_encoder.embed_tokens.weight"


@pytest.fixture
def base(build):
    """The weights of an encoder alone."""
    state = build(head=False, seed=7).state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith(LM_HEAD)}


@pytest.mark.parametrize("untied", [False, True])
def test_a_classifier_takes_it_and_says_nothing(untied, build, base, batch, logits, caplog):
    model = build("lora", untie_weights_roberta=untied)
    before = model.encoder.lm_head.dense.weight.clone()
    with caplog.at_level(logging.INFO):
        model.load_state_dict(dict(base))
    assert "LM head" not in caplog.text
    assert torch.equal(model.state_dict()[WORDS], base[WORDS])
    assert torch.equal(model.encoder.lm_head.dense.weight, before)
    tied = torch.equal(model.encoder.lm_head.weight, base[WORDS])
    assert tied != untied
    assert logits(model, batch).isfinite().all()


def test_a_language_model_is_told(build, base, caplog):
    with caplog.at_level(logging.INFO):
        build("full", head=False).load_state_dict(dict(base))
    assert "the base has no LM head: a fresh one is random at first, it trains" in caplog.text


def test_one_that_would_stay_random_is_refused(build, base):
    with pytest.raises(InputError, match="--peft lora would leave a fresh one as random as it is"):
        build("lora", head=False).load_state_dict(dict(base))


def test_a_slim_checkpoint_holds_no_second_embedding(build, base):
    model = build("lora")
    model.load_state_dict(dict(base))
    ref = slim.BaseRef.of(model, {"model": base}, "base.pt")
    whole = dict(model.state_dict())
    written = ref.leave_out({"model": whole}, ".")["model"]
    assert WORDS not in written and LM_HEAD + "weight" not in written
    assert LM_HEAD + "dense.weight" in written
    again = build("lora", seed=2)
    again.load_state_dict({**base, **written})
    assert all(torch.equal(again.state_dict()[name], whole[name]) for name in whole)
