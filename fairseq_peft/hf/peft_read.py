"""A config of Hugging Face PEFT as ``--peft`` and its flags."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fairseq_peft.errors import InputError
from fairseq_peft.hf.peft_beside import Beside
from fairseq_peft.hf.peft_match import (
    as_patterns,
    fits,
    fits_loosely,
    fits_pattern,
    our_end,
    shortened,
)
from fairseq_peft.hf.peft_names import PROMPT
from fairseq_peft.injection import targets
from fairseq_peft.methods import ia3
from fairseq_peft.methods.shared import low_rank

#: Fields of PEFT's configs that change nothing about a trained model.
NEUTRAL = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version"),
        *("revision", "runtime_config", "task_type", "fan_in_fan_out", "init_ia3_weights"),
        *("init_weights", "ensure_weight_tying", "qalora_group_size", "megatron_config"),
        *("megatron_core", "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_kwargs"),
        *("tokenizer_name_or_path", "token_dim", "num_layers", "num_attention_heads"),
        *("encoder_hidden_size", "prefix_projection", "eva_config"),
    )
)
_CHOICE = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_LORA = ("r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "rank_pattern", "alpha_pattern")
READ = {
    "LORA": {*_CHOICE, *_LORA, "use_dora", "init_lora_weights", "modules_to_save"},
    "IA3": {"target_modules", "exclude_modules", "feedforward_modules", "modules_to_save"},
    "PROMPT_TUNING": {"num_virtual_tokens", "num_transformer_submodules", "modules_to_save"},
    "PREFIX_TUNING": {"num_virtual_tokens", "num_transformer_submodules", "modules_to_save"},
}


def as_flags(config: dict, theirs: dict[str, str], beside: Beside) -> tuple[str, dict]:
    """``--peft`` and its flags (attribute names), for a config of PEFT.

    Args:
        theirs: ``places`` of the model.
        beside: the kind of model.

    Raises:
        InputError: it says what has no counterpart here.
    """
    kind = config.get("peft_type")
    if kind not in beside.types:
        raise InputError(
            f"peft_type {kind!r} cannot be imported. Those that can: {', '.join(beside.types)}."
        )
    if config.get("task_type") not in (None, beside.task_type):
        raise InputError(
            f"task_type {config['task_type']} cannot be imported: {beside.advice}. Give a folder "
            f"with task_type {beside.task_type}."
        )
    others = {key: value for key, value in config.items() if key not in READ[kind] | NEUTRAL}
    if not set(config.get("modules_to_save") or ()) <= beside.saved:
        others["modules_to_save"] = config["modules_to_save"]
    if config.get("layers_pattern") not in (None, [], "", beside.layers, [beside.layers]):
        others["layers_pattern"] = config["layers_pattern"]
    if (config.get("num_transformer_submodules") or 1) not in (1, 2 if _has_two(config) else 1):
        others["num_transformer_submodules"] = config["num_transformer_submodules"]
    if f"--lora-bias {config.get('bias')}" in beside.reasons:
        others["bias"] = config["bias"]
    for key, value in others.items():
        if value:
            raise InputError(
                f"{key} {value!r} cannot be imported: it has no counterpart here. Give a folder "
                "without it."
            )
    try:
        return READERS[kind](config, {name: ours for ours, name in theirs.items()}, beside)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise InputError(
            f"The config of PEFT cannot be understood ({type(error).__name__}: {error}). Give the "
            "one that save_pretrained wrote."
        ) from error


def _has_two(config) -> bool:
    """Whether it may have a prompt for encoder and decoder each, of which PEFT reads the first."""
    return config.get("peft_type") == "PROMPT_TUNING" and config.get("task_type") == "SEQ_2_SEQ_LM"


def read_there(config: dict, tensors: dict) -> dict:
    """The tensors of a folder that PEFT computes with: without the second prompt, which is its
    default for encoder-decoders, and which nothing reads.

    Raises:
        InputError: there are not two.
    """
    if not (_has_two(config) and config.get("num_transformer_submodules") == 2):
        return tensors
    number, prompts = config.get("num_virtual_tokens"), tensors.get(PROMPT)
    if prompts is None or len(prompts) != 2 * number:
        raise InputError(
            f"{PROMPT} has {0 if prompts is None else len(prompts)} vectors, expected 2 prompts of "
            f"{number} (num_transformer_submodules 2). Save the folder again."
        )
    return {**tensors, PROMPT: prompts[:number]}


def _as_lora(config, ours, beside):
    chosen = meant(config, ours, "LORA", beside)
    rank, alpha = config.get("r", 8), float(config.get("lora_alpha", 8))
    ranks = _by_pattern(config.get("rank_pattern"), chosen, rank)
    alphas = _by_pattern(config.get("alpha_pattern"), chosen, alpha)
    ranks = {ours[name]: int(value) for name, value in ranks.items()}
    alphas = {ours[name]: float(value) for name, value in alphas.items()}
    flags = {
        "lora_rank": rank,
        "lora_alpha": alpha,
        "peft_targets": _our_targets(chosen, ours),
        "lora_dropout": float(config.get("lora_dropout") or 0),
        "lora_rslora": bool(config.get("use_rslora")),
        "lora_bias": config.get("bias") or "none",
        "lora_rank_pattern": _pattern_text(ranks, rank),
        "lora_alpha_pattern": _pattern_text(alphas, alpha),
    }
    start = config.get("init_lora_weights", True)
    if start in low_rank.DECOMPOSITIONS and not config.get("use_dora"):
        flags["lora_init"] = start
    elif start not in (True, False, None, "gaussian", "orthogonal", "eva"):
        raise InputError(
            f"init_lora_weights {start!r} cannot be imported: it has changed the base's weights in "
            "a way that is not known here. Let PEFT save it as LoRA of the plain base "
            "(path_initial_model_for_weight_conversion)."
        )
    return "dora" if config.get("use_dora") else "lora", flags


def _as_ia3(config, ours, beside):
    chosen = meant(config, ours, "IA3", beside)
    words = config.get("feedforward_modules")
    words = beside.feedforward if words is None else words
    if isinstance(words, str):
        inputs = [name for name in chosen if re.fullmatch(words, name)]
    else:
        inputs = [name for name in chosen if any(fits_loosely(name, end) for end in words)]
    feedforward = _our_targets(inputs, ours)
    return "ia3", {
        "ia3_targets": _our_targets(chosen, ours),
        "ia3_feedforward": feedforward or ia3.NONE,
    }


def _as_prompt(config, ours, beside):
    return "prompt", {
        "prompt_num_tokens": config["num_virtual_tokens"],
        "prompt_init": "random",
        "prompt_placement": "before_bos",
    }


def _as_prefix(config, ours, beside):
    return "prefix", {
        "prefix_num_tokens": config["num_virtual_tokens"],
        "prefix_positions": "reserved",
    }


READERS = {
    "LORA": _as_lora,
    "IA3": _as_ia3,
    "PROMPT_TUNING": _as_prompt,
    "PREFIX_TUNING": _as_prefix,
}


def meant(config: dict, names: Iterable[str], kind: str, beside: Beside) -> list[str]:
    """The ``names`` (whole names of theirs) that a config targets, as PEFT chooses them.

    Raises:
        InputError: there are none.
    """
    words = config.get("target_modules")
    words = beside.targets[kind] if words is None else words
    excluded = config.get("exclude_modules") or []
    layers = config.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers

    def chosen(name):
        if not _hit(name, words, beside) or _hit(name, excluded, beside):
            return False
        # A whole name counts whatever the layers.
        return not layers or name in words or any(f".{beside.layers}.{n}." in name for n in layers)

    found = [name for name in names if chosen(name)]
    if not found:
        raise InputError(
            f"target_modules {words!r} mean nothing in this model. Modules there: "
            f"{', '.join(dict.fromkeys(map(beside.end, names)))}."
        )
    return found


def _hit(name, words, beside):
    if isinstance(words, str):
        if words.lower() == targets.ALL_LINEAR:
            return f".{beside.layers}." in name
        return re.fullmatch(words, name) is not None
    return any(fits(name, word) for word in words)


def _by_pattern(patterns, names, default):
    """Name -> number, as PEFT reads ``rank_pattern``: the first key that fits."""
    found = {}
    for name in names:
        keys = (key for key in patterns or {} if fits_pattern(name, key))
        found[name] = (patterns or {}).get(next(keys, None), default)
    return found


def _our_targets(chosen, ours):
    names = [ours[name] for name in chosen]
    return ",".join(shortened(names, ours.values(), our_end, targets.hits))


def _pattern_text(values, default):
    found = as_patterns(values, default, our_end, targets.hits)
    return ",".join(f"{name}={number}" for name, number in found.items())
