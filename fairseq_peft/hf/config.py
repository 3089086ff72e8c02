"""Hugging Face's config.json of a fairseq RoBERTa and back, and what has no counterpart."""

from __future__ import annotations

from collections.abc import Sequence

from fairseq_peft.errors import InputError
from fairseq_peft.models import norms
from fairseq_peft.scores import CLASSES, LABELS, NUMBER

#: Flag -> (value that Hugging Face's RoBERTa has, why another is refused).
FIXED = {
    "encoder_normalize_before": (False, "its layer norms come after each block"),
    "layernorm_embedding": (True, "it has a layer norm on the embeddings"),
    "activation_fn": ("gelu", "its language model's head is fixed to gelu"),
    "pooler_activation_fn": ("tanh", "its classification head is fixed to tanh"),
    "pooler": ("first", "its classification head reads the features of <s>"),
    "classifier_head": ("roberta", "its classification head has a dense layer before the classes"),
}
#: The same, the other way round.
FIXED_THERE = {
    "hidden_act": ("gelu", "its LM head has the same activation as its layers"),
    "pad_token_id": (1, "it numbers positions from there"),
    "bos_token_id": (0, "its dictionary begins with <s>"),
    "eos_token_id": (2, "its dictionary has </s> there"),
    "position_embedding_type": ("absolute", "it adds positions to the embeddings"),
    "is_decoder": (False, "it reads in both directions"),
}
#: Those of the same shape; ``origins.py`` brings BERT to it.
MODEL_TYPES = ("roberta", "camembert", "xlm-roberta", "bert")
#: Kind of task (``scores``) -> ``problem_type``: what the library makes of a head's outputs.
PROBLEMS = {
    CLASSES: "single_label_classification",
    LABELS: "multi_label_classification",
    NUMBER: "regression",
}
#: The same for what only training does.
FIXED_IN_TRAINING = {
    "activation_dropout": (0.0, "it has no dropout inside the feed-forward block"),
    "encoder_layerdrop": (0.0, "it leaves out no layers"),
}


def check(args, table=FIXED) -> None:
    """Raise InputError where the flags ``args`` (a Namespace) build what Hugging Face's RoBERTa
    cannot be."""
    for name, (expected, reason) in table.items():
        value = getattr(args, name, None)
        if value is not None and value != expected:
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"The model has {flag} {value}, and Hugging Face's RoBERTa has no counterpart: "
                f"{reason}. Only models with {flag} {expected} can go there."
            )


def roberta(
    args,
    num_rows: int,
    labels: Sequence[str] = (),
    tied: bool = True,
    lm_head: bool = True,
    kind: str = CLASSES,
) -> dict:
    """config.json of the model that the flags ``args`` build.

    Args:
        num_rows: rows of the token embedding, ``<mask>`` among them.
        labels: class names in the order of the outputs; none for a language model.
        tied: whether the LM head's matrix is the token embedding.
        lm_head: whether there is one.
        kind: of task, where there are labels.

    Raises:
        InputError: it has no counterpart.
    """
    check(args)
    check(args, FIXED_IN_TRAINING)
    model_class = "RobertaForMaskedLM" if lm_head else "RobertaModel"
    model_class = "RobertaForSequenceClassification" if labels else model_class
    config = {
        "model_type": "roberta",
        "architectures": [model_class],
        "num_hidden_layers": args.encoder_layers,
        "hidden_size": args.encoder_embed_dim,
        "intermediate_size": args.encoder_ffn_embed_dim,
        "num_attention_heads": args.encoder_attention_heads,
        "vocab_size": num_rows,
        # fairseq numbers positions from 2 on: padding_idx + 1.
        "max_position_embeddings": args.max_positions + 2,
        "type_vocab_size": 1,
        "layer_norm_eps": norms.eps_of(args),
        "hidden_act": "gelu",
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "hidden_dropout_prob": getattr(args, "dropout", 0.1),
        "attention_probs_dropout_prob": getattr(args, "attention_dropout", 0.1),
        # None would mean hidden_dropout_prob there.
        "classifier_dropout": getattr(args, "pooler_dropout", 0.0),
        "tie_word_embeddings": tied,
    }
    return {**config, **label_maps(labels, kind)} if labels else config


def label_maps(labels: Sequence[str], kind: str = CLASSES) -> dict:
    """``id2label`` and ``label2id``, as config.json has them, and ``problem_type`` where a row has
    not just one class."""
    return {
        **({} if kind == CLASSES else {"problem_type": PROBLEMS[kind]}),
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def flags(config: dict) -> dict:
    """fairseq's flags for a config.json of Hugging Face's.

    Raises:
        InputError: it is of another architecture, or has what fairseq's RoBERTa has not.
    """
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise InputError(
            f"model_type {kind!r} cannot be converted. Those that can: {', '.join(MODEL_TYPES)}."
        )
    bert = kind == "bert"
    for name, (expected, reason) in FIXED_THERE.items():
        if bert and name == "pad_token_id":  # its positions begin at 0
            continue
        value = config.get(name, expected)
        if value != expected:
            raise InputError(
                f"The config has {name} {value!r}, and fairseq's RoBERTa has no counterpart: "
                f"{reason}. Only models with {name} {expected!r} can come here."
            )
    classifier_dropout = config.get("classifier_dropout")
    hidden_dropout = config.get("hidden_dropout_prob", 0.1)
    return {
        "encoder_layers": config.get("num_hidden_layers", 12),
        "encoder_embed_dim": config.get("hidden_size", 768),
        "encoder_ffn_embed_dim": config.get("intermediate_size", 3072),
        "encoder_attention_heads": config.get("num_attention_heads", 12),
        "max_positions": config.get("max_position_embeddings", 512) - (0 if bert else 2),
        "activation_fn": "gelu",
        "pooler_activation_fn": "tanh",
        "encoder_normalize_before": False,
        "layernorm_embedding": True,
        # Where a config is silent, it is the library's default that was meant.
        "layer_norm_eps": config.get("layer_norm_eps", 1e-12),
        "untie_weights_roberta": not config.get("tie_word_embeddings", True),
        "dropout": hidden_dropout,
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.1),
        "activation_dropout": 0.0,
        "pooler_dropout": hidden_dropout if classifier_dropout is None else classifier_dropout,
    }


def class_names(config: dict) -> list[str]:
    """The labels of a config.json in the order of the outputs; none for a language model.

    Raises:
        InputError: as ``names_of``.
    """
    if not any("SequenceClassification" in kind for kind in config.get("architectures") or ()):
        return []
    labels = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return names_of(labels, "config.json")


def names_of(labels: dict, file) -> list[str]:
    """The names in ``id2label`` in their order.

    Args:
        file: where it stands.

    Raises:
        InputError: it does not number different names from 0.
    """
    numbers = [str(number) for number in range(len(labels))] if isinstance(labels, dict) else None
    if numbers is None or set(labels) != set(numbers):
        raise InputError(f"id2label does not number the classes from 0. Correct {file}.")
    names = [labels[number] for number in numbers]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise InputError(
            f"id2label has the classes {names!r:.80}. Expected names that differ. Correct {file}."
        )
    return names


def kind_of(config: dict, num_outputs: int) -> str:
    """The kind of task that a head of ``num_outputs`` is for; the library takes a single one for a
    number where nothing is said.

    Raises:
        InputError: ``problem_type`` is none of the library's.
    """
    problem = config.get("problem_type")
    if problem is None:
        return NUMBER if num_outputs == 1 else CLASSES
    found = [kind for kind, name in PROBLEMS.items() if name == problem]
    if not found:
        raise InputError(
            f"problem_type {problem!r} is unknown; expected one of {', '.join(PROBLEMS.values())}. "
            "Correct the file."
        )
    return found[0]
