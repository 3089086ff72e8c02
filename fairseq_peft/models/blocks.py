"""The blocks of fairseq's transformer layers, in encoders and in decoders."""

from fairseq_peft.injection.family import Block


def _projections(attention):
    return tuple(f"{attention}.{name}_proj" for name in ("q", "k", "v", "out"))


SELF_ATTENTION = Block("attention", _projections("self_attn"), "self_attn_layer_norm")
CROSS_ATTENTION = Block("cross_attention", _projections("encoder_attn"), "encoder_attn_layer_norm")
FEED_FORWARD = Block("ffn", ("fc1", "fc2"), "final_layer_norm")
