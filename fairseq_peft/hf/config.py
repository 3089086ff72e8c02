"""Hugging Face's config.json of a fairseq RoBERTa, and what has no counterpart there."""

from __future__ import annotations

from collections.abc import Sequence

from fairseq_peft.errors import InputError

#: Flag -> (value that Hugging Face's RoBERTa has, why another is refused).
FIXED = {
    "encoder_normalize_before": (False, "its layer norms come after each block"),
    "layernorm_embedding": (True, "it has a layer norm on the embeddings"),
    "activation_fn": ("gelu", "its language model's head is fixed to gelu"),
    "pooler_activation_fn": ("tanh", "its classification head is fixed to tanh"),
    "classifier_head": ("roberta", "its classification head has a dense layer before the classes"),
}


def check(args) -> None:
    """Raise InputError where the flags ``args`` (a Namespace) build what Hugging Face's RoBERTa
    cannot be."""
    for name, (expected, reason) in FIXED.items():
        value = getattr(args, name, None)
        if value is not None and value != expected:
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"The model has {flag} {value}, and Hugging Face's RoBERTa has no counterpart: "
                f"{reason}. Only models with {flag} {expected} can go there."
            )


def roberta(args, num_rows: int, labels: Sequence[str] = ()) -> dict:
    """config.json of the model that the flags ``args`` build.

    Args:
        num_rows: rows of the token embedding, ``<mask>`` among them.
        labels: class names in the order of the outputs; none for a language model.
    """
    check(args)
    kind = "RobertaForSequenceClassification" if labels else "RobertaForMaskedLM"
    config = {
        "model_type": "roberta",
        "architectures": [kind],
        "num_hidden_layers": args.encoder_layers,
        "hidden_size": args.encoder_embed_dim,
        "intermediate_size": args.encoder_ffn_embed_dim,
        "num_attention_heads": args.encoder_attention_heads,
        "vocab_size": num_rows,
        # fairseq numbers positions from 2 on: padding_idx + 1.
        "max_position_embeddings": args.max_positions + 2,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "hidden_dropout_prob": args.dropout,
        "attention_probs_dropout_prob": args.attention_dropout,
        "classifier_dropout": args.pooler_dropout,
        "tie_word_embeddings": not getattr(args, "untie_weights_roberta", False),
        "dtype": "float32",
    }
    return {**config, **label_maps(labels)} if labels else config


def label_maps(labels: Sequence[str]) -> dict:
    """``id2label`` and ``label2id``, as config.json has them."""
    return {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
