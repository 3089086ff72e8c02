"""Prompt tuning: starts, placements, the MLP and knobs."""

from __future__ import annotations

import pytest
import torch
from helpers import TOLERANCE, first_input

TEXT = {"prompt_init": "text", "prompt_init_text": "w3 w1 unheard w3"}


def reads_words(model):
    """Give a model the words of the fixture ``dictionary``: w0 is row 4, an unknown word 3."""
    model.encode_text = lambda text: [
        4 + int(word[1:]) if word[1:].isdigit() else 3 for word in text.split()
    ]
    return model


def prompt_of(model):
    return model.encoder.sentence_encoder.soft_prompt


@pytest.fixture
def base(build):
    return build("full", seed=11, head=False).state_dict()


def table_of(base):
    return base["encoder.sentence_encoder.embed_tokens.weight"]


# Starts


@pytest.mark.parametrize("mlp", [None, 6])
def test_vocabulary_prompts_take_the_rows_of_the_base(build, base, mlp):
    model = build("prompt", prompt_mlp=mlp)
    model.load_state_dict(dict(base))
    prompt = prompt_of(model)
    assert torch.equal(prompt.embeddings, table_of(base)[prompt.vocab_rows])
    assert prompt.vocab_rows.min() >= 4
    # A checkpoint that has a prompt keeps it.
    own = model.state_dict()
    own["encoder.sentence_encoder.soft_prompt.embeddings"] = torch.ones_like(prompt.embeddings)
    model.load_state_dict(own)
    assert torch.equal(prompt.embeddings, torch.ones_like(prompt.embeddings))


@pytest.mark.parametrize("num_tokens, rows", [(3, [7, 5, 3]), (10, [7, 5, 3, 7] * 2 + [7, 5])])
def test_a_text_is_cut_or_repeated_to_the_prompt(build, base, num_tokens, rows):
    """As in Hugging Face PEFT; the embeddings are those of the base that is loaded."""
    model = reads_words(build("prompt", prompt_num_tokens=num_tokens, **TEXT))
    model.load_state_dict(dict(base))
    assert torch.equal(prompt_of(model).embeddings, table_of(base)[rows])


def test_a_text_starts_a_model_from_scratch(build):
    model = reads_words(build("prompt", **TEXT))
    model.adopt_base()
    table = model.encoder.sentence_encoder.embed_tokens.weight
    assert torch.equal(prompt_of(model).embeddings, table[[7, 5, 3, 7] * 5])


def test_a_finished_model_needs_no_text(build, batch, logits):
    trained = reads_words(build("prompt", **TEXT))
    trained.adopt_base()
    model = build("prompt", seed=5, **TEXT)
    model.accepts_base = False
    model.load_state_dict(trained.state_dict())
    assert torch.equal(logits(model, batch), logits(trained, batch))
    # Nor does one that begins with another run's prompt.
    build("prompt", **TEXT).load_state_dict(trained.state_dict())


def test_a_text_without_a_reader_or_a_known_word_is_refused(build, base):
    with pytest.raises(ValueError, match="--prompt-init text needs a task that can read text"):
        build("prompt", **TEXT).load_state_dict(dict(base))
    model = reads_words(build("prompt", prompt_init="text", prompt_init_text="hello world"))
    with pytest.raises(ValueError, match="'hello world' has no word that the dictionary knows"):
        model.check_base(base)


# Places and positions


@pytest.mark.parametrize("placement", ["after_bos", "before_bos"])
def test_what_the_head_reads_with_a_prompt(build, batch, placement):
    """after_bos: <s>; before_bos: the first prompt token, as in Hugging Face PEFT."""
    model = build("prompt", prompt_placement=placement, prompt_num_tokens=3)
    encoder = model.encoder.sentence_encoder
    found = first_input(model, batch)
    with torch.no_grad():
        position = encoder.embed_positions.weight[2]
        prompt, bos = encoder.soft_prompt.embeddings, encoder.embed_tokens.weight[0]
        first = prompt[0] if placement == "before_bos" else bos
        expected = encoder.layernorm_embedding(first + position)
    assert torch.allclose(found[:, 0], expected.expand(4, -1), atol=1e-6)
    assert found.shape[1] == 12 + 3


@pytest.mark.parametrize("placement", ["after_bos", "before_bos"])
@pytest.mark.parametrize(
    "peft, given, shift",
    [
        ("prompt", {}, 0),
        ("prompt", {"prompt_mlp": 6}, 0),
        ("prompt,prefix", {"prefix_num_tokens": 5, "prefix_positions": "reserved"}, 5),
        ("prompt,prefix", {"prefix_num_tokens": 5}, 0),
    ],
)
def test_every_token_stands_at_its_position(build, batch, placement, peft, given, shift):
    """Row by row: the words in their order, numbered from ``shift`` on, padding without a
    number."""
    model = build(peft, prompt_placement=placement, prompt_num_tokens=3, **given)
    encoder = model.encoder.sentence_encoder
    found = first_input(model, batch)
    with torch.no_grad():
        prompt = encoder.soft_prompt.vectors()
        for row, tokens in zip(found, batch):
            length = int(tokens.ne(1).sum())
            words = encoder.embed_tokens(tokens[:length])
            parts = (words[:1], prompt, words[1:]) if placement == "after_bos" else (prompt, words)
            seen = torch.cat(parts)
            places = encoder.embed_positions.weight[2 + shift :][: len(seen)]
            expected = encoder.layernorm_embedding(seen + places)
            assert torch.allclose(row[: len(seen)], expected, atol=1e-6)
            assert not row[len(seen) :].any()


@pytest.mark.parametrize("placement", ["after_bos", "before_bos"])
@pytest.mark.parametrize("mlp", [0, 6])
def test_masks_follow_the_prompt(build, batch, logits, placement, mlp):
    """A row's scores do not depend on how much padding the longest row gives it."""
    model = build("prompt", prompt_placement=placement, prompt_mlp=mlp)
    together = logits(model, batch)
    for row, scores in zip(batch, together):
        alone = logits(model, row[row.ne(1)][None])[0]
        assert (alone - scores).abs().max() < TOLERANCE["fp32"]


def test_features_are_those_of_the_text(build, batch):
    """With and without a prompt a text has as many features as tokens, in their order."""
    model = build("prompt", prompt_num_tokens=3)
    kept = {}
    last = model.encoder.sentence_encoder.layers[-1]
    hook = last.register_forward_hook(lambda m, args, out: kept.update(x=out))
    with torch.no_grad():
        features = model(batch, features_only=True)[0]
    hook.remove()
    assert torch.equal(features, torch.cat([kept["x"][:, :1], kept["x"][:, 4:]], 1))


def test_too_long_a_text_is_refused(build):
    tokens = torch.full((1, 38), 7)
    build("prompt", prompt_num_tokens=2)(tokens, features_only=True)
    with pytest.raises(ValueError, match="38 tokens and 3 prompt or prefix tokens.* 40 positions"):
        build("prompt", prompt_num_tokens=3)(tokens, features_only=True)


# Knobs


@pytest.mark.parametrize(
    "given, message",
    [
        ({"prompt_num_tokens": 0}, "--prompt-num-tokens 0 is no prompt"),
        ({"prompt_init": "zeros"}, "--prompt-init 'zeros'"),
        ({"prompt_placement": "end"}, "--prompt-placement 'end'"),
        ({"prompt_mlp": -1}, "--prompt-mlp -1 is no hidden size"),
        ({"prompt_init": "text"}, "--prompt-init text needs a text: give it with --prompt-init-"),
        ({"prompt_init": "text", "prompt_init_text": " "}, "--prompt-init text needs a text"),
        ({"prompt_init_text": "w1"}, "'w1' would be ignored: --prompt-init is vocab"),
        (
            {"prompt_init": "random", "prompt_init_text": "w1"},
            "'w1' would be ignored: --prompt-init is random",
        ),
    ],
)
def test_bad_knobs_are_refused(build, given, message):
    with pytest.raises(ValueError) as error:
        build("prompt", **given)
    assert message in str(error.value)
