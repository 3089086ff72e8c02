"""adapter_config.json of Hugging Face PEFT, of one of our settings: what PEFT needs, and what is
not its default."""

from __future__ import annotations

from fairseq_peft.errors import InputError
from fairseq_peft.hf import peft_beside
from fairseq_peft.hf.peft_match import (
    as_patterns,
    fits,
    fits_loosely,
    fits_pattern,
    places,
    shortened,
)
from fairseq_peft.injection import surgery, targets
from fairseq_peft.methods import ia3
from fairseq_peft.methods.shared import low_rank

_UNKNOWN = "PEFT has no such method for this model"
_MERGE = "fairseq-peft merge makes a plain model of a method that merges"


def of_model(model) -> dict:
    """adapter_config.json for the method in ``model``.

    Raises:
        InputError: PEFT has no counterpart.
    """
    if len(model.setting) > 1:
        raise InputError(
            f"--peft {model.setting.name} cannot be exported: a folder of PEFT holds one method. "
            f"{_MERGE}."
        )
    (method,) = model.setting
    beside = peft_beside.of(model)
    if method.name in beside.reasons or method.name not in WRITERS:
        reason = beside.reasons.get(method.name, _UNKNOWN)
        raise InputError(f"--peft {method.name} cannot be exported: {reason}. {_MERGE}.")
    if getattr(model.args, "hf_split_qkv", False):
        raise InputError(
            "--hf-split-qkv cannot be exported: PEFT adapts query, key and value of a fused map as "
            f"one. {_MERGE}."
        )
    return {**WRITERS[method.name](model, method.config), "task_type": beside.task_type}


def _of_lora(model, config):
    theirs, beside = places(model), peft_beside.of(model)
    linears = surgery.linears(model, model.family)
    embeddings = surgery.embeddings(model, model.family)
    ours = list(low_rank.choose(config, linears, embeddings))
    words = model.family.embedding.rpartition(".")[2]
    given = {
        f"--peft-targets {words}": any(name in embeddings for name in ours),
        f"--lora-bias {config.bias}": True,
    }
    for flag in (flag for flag, is_given in given.items() if is_given and flag in beside.reasons):
        raise InputError(f"{flag} cannot be exported: {beside.reasons[flag]}. {_MERGE}.")
    ranks = targets.by_pattern(ours, config.rank_pattern, "--lora-rank-pattern", int, config.rank)
    alphas = targets.by_pattern(
        ours, config.alpha_pattern, "--lora-alpha-pattern", float, config.alpha
    )
    chosen = [theirs[name] for name in ours]
    found = {
        "peft_type": "LORA",
        "r": config.rank,
        "lora_alpha": _plain(config.alpha),
        "target_modules": shortened(chosen, theirs.values(), beside.end, fits),
    }
    patterns = {
        "rank_pattern": ({theirs[n]: ranks[n] for n in ours}, config.rank),
        "alpha_pattern": ({theirs[n]: _plain(alphas[n]) for n in ours}, _plain(config.alpha)),
    }
    start = getattr(config, "init", "zero")
    others = {
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "bias": config.bias if config.bias != "none" else None,
        "fan_in_fan_out": beside.transposed,
        # PEFT, too, corrects the base by it when it loads the folder.
        "init_lora_weights": start if start != "zero" else None,
        **{key: as_patterns(*both, beside.end, fits_pattern) for key, both in patterns.items()},
    }
    return {**found, **{key: value for key, value in others.items() if value}}


def _of_dora(model, config):
    return {**_of_lora(model, config), "use_dora": True}


def _of_ia3(model, config):
    theirs, beside = places(model), peft_beside.of(model)
    on_input = ia3.places(surgery.linears(model, model.family), config)
    chosen = [theirs[name] for name in on_input]
    inputs = [theirs[name] for name, before in on_input.items() if before]
    ends = shortened(chosen, theirs.values(), beside.end, fits)
    input_ends = shortened(inputs, chosen, beside.end, fits_loosely)
    if not set(input_ends) <= set(ends):  # PEFT wants the one list in the other
        ends, input_ends = chosen, inputs
    found = {"peft_type": "IA3", "target_modules": ends, "feedforward_modules": input_ends}
    return {**found, **({"fan_in_fan_out": True} if beside.transposed else {})}


def _of_prompt(model, config):
    if config.placement != "before_bos":
        raise InputError(
            f"--prompt-placement {config.placement} cannot be exported: PEFT puts prompts before "
            "<s>, and reads the class from the first of them. Train with --prompt-placement "
            "before_bos."
        )
    return {"peft_type": "PROMPT_TUNING", **_virtual_tokens(model, config)}


def _of_prefix(model, config):
    if config.positions != "reserved":
        raise InputError(
            f"--prefix-positions {config.positions} cannot be exported: with PEFT the text begins "
            "behind the prefix's positions. Train with --prefix-positions reserved."
        )
    found = {"peft_type": "PREFIX_TUNING", **_virtual_tokens(model, config)}
    return {**found, "encoder_hidden_size": found["token_dim"]}


def _virtual_tokens(model, config):
    (table, *_) = surgery.embeddings(model, model.family).values()
    first = model.family.stacks[0]
    num_heads = getattr(model.family, "num_heads", 0) or model.args.encoder_attention_heads
    return {
        "num_virtual_tokens": config.num_tokens,
        "token_dim": table.embedding_dim,
        "num_layers": len([p for p in surgery.places(model, model.family) if p.stack is first]),
        "num_attention_heads": num_heads,
        "num_transformer_submodules": 1,
    }


WRITERS = {
    "lora": _of_lora,
    "dora": _of_dora,
    "ia3": _of_ia3,
    "prompt": _of_prompt,
    "prefix": _of_prefix,
}


def _plain(number: float):
    """An integer where it is one: ``lora_alpha`` is 16 there, not 16.0."""
    return int(number) if number == int(number) else number
