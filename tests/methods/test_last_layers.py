"""The last layers: which, how many, with the embedding or without."""

from __future__ import annotations

import pytest

from fairseq_peft import methods
from fairseq_peft.architectures import COUNTED, Undefined


def trained(model):
    return {
        name.split("sentence_encoder.")[1]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not name.startswith("classification_heads.")
    }


def test_every_tensor_of_the_last_layer_and_nothing_else(build):
    model = build("last_layers")
    names = {name for name, _ in model.encoder.sentence_encoder.named_parameters()}
    last = {name for name in names if name.startswith("layers.1.")}
    assert trained(model) == last and len(last) == 16
    both = {name for name in names if name.startswith("layers.")}
    assert trained(build("last_layers", last_layers_num_layers=2)) == both


def test_the_embedding_trains_with_its_output(build):
    """Tied: one tensor, which the LM head reads, too."""
    model = build("last_layers", last_layers_embeddings=True)
    assert trained(model) - trained(build("last_layers")) == {"embed_tokens.weight"}
    encoder = model.encoder
    assert encoder.lm_head.weight is encoder.sentence_encoder.embed_tokens.weight
    assert encoder.lm_head.weight.requires_grad


def test_counts_of_the_systems():
    """GPT-2 small, last block and tied embedding: 45,685,248 (S5)."""
    gpt2 = COUNTED["gpt2_small"]

    def count(peft, **given):
        return methods.setting(peft, given).count_base(gpt2).total

    assert count("last_layers") == 7_087_872
    assert count("last_layers", last_layers_embeddings=True) == 45_685_248
    # The two norms of the last block count once.
    assert count("last_layers,layer_norm") == 7_087_872 + 23 * 2 * 768
    with pytest.raises(Undefined, match="one stack of layers"):
        methods.setting("last_layers", {}).count_base(COUNTED["t5_small"])


@pytest.mark.parametrize(
    "given, message",
    [
        ({"last_layers_num_layers": 0}, "--last-layers-num-layers 0 trains no layer"),
        ({"last_layers_num_layers": 3}, "--last-layers-num-layers 3, but the model has 2 layers"),
        ({"peft": "last_layers,lora"}, "lora+last_layers: last_layers trains"),
        ({"peft": "last_layers,ia3"}, "ia3+last_layers: last_layers trains"),
        ({"peft": "lora", "last_layers_embeddings": True}, "--last-layers-embeddings would be"),
    ],
)
def test_bad_knobs_are_refused(build, given, message):
    with pytest.raises(ValueError) as error:
        build(**{"peft": "last_layers", **given})
    assert message in str(error.value)
