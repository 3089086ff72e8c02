"""Layer norm tuning: which tensors."""

from __future__ import annotations

from fairseq_peft import methods
from fairseq_peft.architectures import COUNTED, SIZES


def test_every_norm_trains_and_nothing_else(build):
    model = build("layer_norm")
    found = {
        name.split("sentence_encoder.")[1]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not name.startswith("classification_heads.")
    }
    norms = [f"layers.{n}.{name}_layer_norm" for n in (0, 1) for name in ("self_attn", "final")]
    assert found == {
        f"{norm}.{kind}" for norm in ["layernorm_embedding", *norms] for kind in ("weight", "bias")
    }


def test_counts_of_the_real_sizes():
    def count(dims):
        return methods.setting("layer_norm", {}).count_base(dims).total

    assert count(SIZES["roberta_base"]) == 25 * 2 * 768 == 38_400
    assert count(COUNTED["gpt2_small"]) == 25 * 2 * 768
    # Norms that only scale: two in each encoder layer, three in each decoder layer, two last ones.
    assert count(COUNTED["t5_small"]) == (6 * 2 + 6 * 3 + 2) * 512
