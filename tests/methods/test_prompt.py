"""Prompt tuning: starts, placements and knobs."""

from __future__ import annotations

import pytest
import torch

SETTINGS = [
    ("prompt", {"prompt_placement": "before_bos", "prompt_num_tokens": 3}),
    ("lora,prompt", {}),
]


def test_vocabulary_prompts_take_the_rows_of_the_base(build):
    base = build("full", seed=11, head=False).state_dict()
    model = build("prompt")
    model.load_state_dict(dict(base))
    prompt = model.encoder.sentence_encoder.soft_prompt
    table = base["encoder.sentence_encoder.embed_tokens.weight"]
    assert torch.equal(prompt.embeddings, table[prompt.vocab_rows])
    assert prompt.vocab_rows.min() >= 4
    # A checkpoint that has a prompt keeps it.
    own = model.state_dict()
    own["encoder.sentence_encoder.soft_prompt.embeddings"] = torch.ones_like(prompt.embeddings)
    model.load_state_dict(own)
    assert torch.equal(prompt.embeddings, torch.ones_like(prompt.embeddings))


@pytest.mark.parametrize("placement", ["after_bos", "before_bos"])
def test_what_the_head_reads_with_a_prompt(build, batch, placement):
    """after_bos: <s>; before_bos: the first prompt token, as in Hugging Face PEFT."""
    model = build("prompt", prompt_placement=placement, prompt_num_tokens=3)
    encoder = model.encoder.sentence_encoder
    captured = {}
    hook = encoder.layers[0].register_forward_pre_hook(lambda m, args: captured.update(x=args[0]))
    with torch.no_grad():
        model(batch, features_only=True)
    hook.remove()
    with torch.no_grad():
        position = encoder.embed_positions.weight[2]
        prompt, bos = encoder.soft_prompt.embeddings, encoder.embed_tokens.weight[0]
        first = prompt[0] if placement == "before_bos" else bos
        expected = encoder.layernorm_embedding(first + position)
    assert torch.allclose(captured["x"][:, 0], expected.expand(4, -1), atol=1e-6)
    assert captured["x"].shape[1] == 12 + 3


@pytest.mark.parametrize(
    "given, message",
    [
        ({"prompt_num_tokens": 0}, "--prompt-num-tokens 0"),
        ({"prompt_init": "zeros"}, "--prompt-init 'zeros'"),
        ({"prompt_placement": "end"}, "--prompt-placement 'end'"),
    ],
)
def test_bad_knobs_are_refused(build, given, message):
    with pytest.raises(ValueError) as error:
        build("prompt", **given)
    assert message in str(error.value)
