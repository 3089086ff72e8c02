"""The models' flags: RoBERTa's own, those of every family, one for every knob of every method.

A field is None until somebody sets it; ``roberta.architecture`` fills in what its name says. So a
flag of a method that is not chosen can be told from one that was left alone, and fairseq-train,
fairseq-hydra-train and checkpoints share one path.
"""

import argparse
import contextlib
import dataclasses
from dataclasses import field, make_dataclass
from typing import Optional

from fairseq.dataclass import FairseqDataclass
from omegaconf import OmegaConf, open_dict

from fairseq_peft import methods, precision
from fairseq_peft.errors import InputError
from fairseq_peft.methods import token_rows
from fairseq_peft.methods.base import field_types, flag_name


def decide_precision(args) -> None:
    """Put what ``--precision`` means here into ``args``, of which checkpoints keep it
    (``checkpoints/saving.py``): a run says what ran, not ``auto``.

    Raises:
        InputError: there is no such precision.
    """
    args.precision = precision.resolve(args.precision)
    precision.warn_if_slow(args.precision)


#: name -> (type, what holds where neither the user nor the size says otherwise, help), for the
#: models of every family.
COMMON = {
    "layer_lr_decay": (
        float,
        1.0,
        "learning rate of a layer, as a factor of the layer's above; the embeddings are below all "
        "(1: one rate for all)",
    ),
    "precision": (
        str,
        "auto",
        "fp32, bf16 (layers under autocast, weights stay fp32), fp16 (the same with a scaled loss, "
        "for GPUs without bf16), or auto: the faster of fp32 and bf16 here (auto)",
    ),
    "compile": (
        str,
        "off",
        "run layers as graphs that torch.compile makes: off, on, or graphs (CUDA graphs, too, for "
        "a GPU); compiling takes a minute at first, and gains little on a CPU (off)",
    ),
    "frozen_dropout": (
        str,
        "on",
        "dropout of frozen layers and embeddings in training: on or off (on)",
    ),
    "peft": (
        str,
        "full",
        f"method, or several with commas: {', '.join(methods.available())} (full)",
    ),
}

#: The same for models that write text.
WRITING = {
    "generation": (
        str,
        "",
        "what fairseq-peft generate does with the adapter folder where its own flags say nothing: "
        'fairseq\'s flags of generation, as JSON: {"beam": 4, "lenpen": 0.6} (nothing)',
    ),
}

#: The same for models that train with fairseq's own tasks.
TEXT = {
    **WRITING,
    "full_checkpoints": (
        bool,
        False,
        "checkpoints hold the whole model, not only what trains",
    ),
}

#: The same for RoBERTa.
ROBERTA = {
    "encoder_layers": (int, None, "number of layers"),
    "encoder_embed_dim": (int, None, "model dimension"),
    "encoder_ffn_embed_dim": (int, None, "dimension of the feed-forward block"),
    "encoder_attention_heads": (int, None, "number of attention heads"),
    "max_positions": (int, None, "longest sequence, with <s>, </s> and prompt tokens"),
    "activation_fn": (str, "gelu", "activation of the feed-forward block (gelu)"),
    "pooler_activation_fn": (str, "tanh", "activation of the classification head (tanh)"),
    "layer_norm_eps": (
        float,
        1e-5,
        "what layer norms add to the variance; fairseq's own models have 1e-5, BERT's kin 1e-12 "
        "(1e-5)",
    ),
    "encoder_normalize_before": (bool, False, "layer norm before each block instead of after it"),
    "layernorm_embedding": (bool, True, "layer norm on the embeddings (on)"),
    "untie_weights_roberta": (bool, False, "own output matrix for the LM head"),
    "dropout": (float, 0.1, "dropout of the residual branches and the embeddings (0.1)"),
    "attention_dropout": (float, 0.1, "dropout of the attention weights (0.1)"),
    "activation_dropout": (float, 0.0, "dropout behind the feed-forward activation (0)"),
    "pooler_dropout": (float, 0.0, "dropout in the classification head (0)"),
    "classifier_head": (
        str,
        "roberta",
        "classification head: roberta (dense C x C, tanh, then classes), or linear, one map: a "
        "tenth of a LoRA of rank 8 on roberta_small, where roberta is four of them (roberta)",
    ),
    "pooler": (
        str,
        "first",
        "what the classification head reads: first, the features of <s>, or the mean or max of all "
        "tokens (first)",
    ),
    "checkpoint_activations": (
        bool,
        False,
        "compute the inside of each layer again in the backward pass instead of keeping it",
    ),
    "load_checkpoint_heads": (bool, False, "take classification heads from the checkpoint too"),
    "reset_head": (
        bool,
        False,
        "start a fresh head although the base checkpoint has one",
    ),
    "init_embeddings": (
        str,
        "",
        "start a fresh model from the token embeddings and LM bias in this .npz (fairseq-peft "
        "svd-embeddings)",
    ),
    **COMMON,
}


def _help_of(config) -> str:
    (knob,) = dataclasses.fields(config)
    return knob.metadata["help"]


def _method_fields():
    """flag -> (type, help), for every knob of every method; methods may share a flag."""
    found = {token_rows.FLAG: (["any method"], str, _help_of(token_rows.TokenRowsConfig))}
    for name in methods.available():
        config = methods.get(name).Config
        types = field_types(config)
        for knob in dataclasses.fields(config):
            users, kind, help_text = found.get(flag_name(name, knob), ([], None, None))
            found[flag_name(name, knob)] = (
                users + [name],
                kind or types[knob.name],
                help_text or knob.metadata["help"],
            )
    return {
        flag: (kind, f"{', '.join(users)}: {text}") for flag, (users, kind, text) in found.items()
    }


METHOD_FIELDS = _method_fields()


#: What the name of a share of dropout ends with, a flag's or of a config of Hugging Face's.
DROPOUTS = ("dropout", "dropout_rate", "pdrop")


def check_dropouts(values: dict, path: str = "") -> None:
    """Raise InputError where a share of dropout cannot be one. Methods look at theirs themselves.

    Args:
        values: flags of a model, or its config.
        path: of the config; empty for flags.
    """
    for name, value in values.items():
        # ESM's token_dropout is a bool, which is no share.
        if type(value) not in (int, float) or not name.endswith(DROPOUTS) or 0 <= value < 1:
            continue
        if name not in METHOD_FIELDS:
            said = f"{path}: {name}" if path else f"--{name.replace('_', '-')}"
            raise InputError(
                f"{said} {value} is not in [0, 1): give a share such as 0.1, or 0 for none."
            )


def _optional(kind, text):
    return Optional[kind], field(default=None, metadata={"help": text})


def config_class(name: str, own: dict, base: type = FairseqDataclass) -> type:
    """The dataclass of a model's flags: those of ``base``, of ``own``, and of every method."""
    flags = [(flag, *_optional(kind, text)) for flag, (kind, _, text) in own.items()]
    flags += [(flag, *_optional(kind, text)) for flag, (kind, text) in METHOD_FIELDS.items()]
    return make_dataclass(name, flags, bases=(base,))


#: The dataclass behind ``fairseq-train --arch roberta_*``.
RobertaPeftConfig = config_class("RobertaPeftConfig", ROBERTA)


def namespace(cfg, defaults: dict) -> argparse.Namespace:
    """The flags of ``cfg``, a config or a namespace, as a namespace with ``defaults``."""
    values = OmegaConf.to_container(cfg) if OmegaConf.is_config(cfg) else vars(cfg)
    args = argparse.Namespace(**values)
    fill(args, defaults)
    return args


def fill(args, presets: dict) -> None:
    """Set the flags of ``presets`` that nobody has set."""
    with open_dict(args) if OmegaConf.is_config(args) else contextlib.nullcontext():
        for name, value in presets.items():
            if getattr(args, name, None) is None:
                setattr(args, name, value)
