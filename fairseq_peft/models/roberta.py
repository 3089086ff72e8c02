"""RoBERTa with any method injected: ``roberta_lora``, with the sizes of its base; or with sizes by
name, ``roberta_small``, ``roberta_base``, ``roberta_large``; each with a suffix a method.

``roberta_peft`` is ``roberta_full``, for ``--peft`` with several methods.
"""

from __future__ import annotations

import argparse
import logging

import numpy as np
import torch
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_REGISTRY,
    register_model,
    register_model_architecture,
)
from fairseq.models.roberta import RobertaModel
from omegaconf import OmegaConf

from fairseq_peft import methods
from fairseq_peft.adapters.base import renamed
from fairseq_peft.architectures import SIZES
from fairseq_peft.errors import InputError
from fairseq_peft.injection.family import Family
from fairseq_peft.models import heads, norms, sizes
from fairseq_peft.models.encoder import STACK, PeftRobertaEncoder
from fairseq_peft.models.kept_features import KeptFeatures, draws, frozen_below
from fairseq_peft.models.options import (
    METHOD_FIELDS,
    ROBERTA,
    RobertaPeftConfig,
    decide_precision,
    fill,
)
from fairseq_peft.models.peft_model import PeftModel
from fairseq_peft.models.sizes import Size
from fairseq_peft.seeds import stream_seed

logger = logging.getLogger(__name__)

HEADS = heads.HEADS
LM_HEAD = "encoder.lm_head."

FAMILY = Family("encoder.sentence_encoder", (STACK,))

_BODY = "encoder.sentence_encoder."
#: What a RoBERTa's base decides.
BASE_SIZES = sizes.BaseSizes(
    Size("encoder_layers", sizes.num_layers(_BODY + "layers.")),
    Size("encoder_embed_dim", sizes.num_columns(_BODY + "embed_tokens.weight")),
    Size("encoder_ffn_embed_dim", sizes.num_rows(_BODY + "layers.0.fc1.weight")),
    Size("encoder_attention_heads", divides="encoder_embed_dim"),
    Size("max_positions", sizes.num_rows(_BODY + "embed_positions.weight", less=2)),
    # Behind the last layer stands a norm where each block begins with one.
    Size("encoder_normalize_before", sizes.is_there(_BODY + "layer_norm.weight")),
    Size("layernorm_embedding", sizes.is_there(_BODY + "layernorm_embedding.weight")),
    Size(
        "untie_weights_roberta",
        sizes.is_untied("encoder.lm_head.weight", _BODY + "embed_tokens.weight"),
        default=False,
    ),
    Size("activation_fn", default="gelu"),
    Size("layer_norm_eps", default=norms.STOCK_EPS),
    words=_BODY + "embed_tokens.weight",
    names=renamed,
    kind="RoBERTa",
    # What the model computes, whatever the base says.
    only={
        "no_scale_embedding": True,
        "encoder_learned_pos": True,
        "no_token_positional_embeddings": False,
        "token_dropout": False,  # ESM's
    },
)


@register_model("roberta_peft", dataclass=RobertaPeftConfig)
class RobertaPeftModel(PeftModel, RobertaModel):
    """fairseq's RoBERTa with methods of ``fairseq_peft.methods`` injected."""

    family = FAMILY
    base_sizes = BASE_SIZES
    reads_lm_head = True

    @classmethod
    def add_args(cls, parser):
        gen_parser_from_dataclass(parser, RobertaPeftConfig(), delete_default=True)

    @classmethod
    def build_model(cls, cfg, task):
        """Build the plain model, then inject the method; seeds come from the task."""
        values = OmegaConf.to_container(cfg) if OmegaConf.is_config(cfg) else vars(cfg)
        args = argparse.Namespace(**values)
        sizes.check_known(args, BASE_SIZES)
        if args.encoder_embed_dim % args.encoder_attention_heads:
            raise InputError(
                f"--encoder-embed-dim {args.encoder_embed_dim} does not divide into "
                "--encoder-attention-heads "
                f"{args.encoder_attention_heads} heads: give a multiple."
            )
        decide_precision(args)
        model = cls(args, PeftRobertaEncoder(args, task.source_dictionary))
        if args.init_embeddings:
            load_embeddings(model, args.init_embeddings)
        model.set_up(args, task)
        return model

    def trains(self, name, chosen):
        """Of the heads, all that are read: an LM head is not, where there are others."""
        if name.startswith(LM_HEAD) and not self.reads_lm_head:
            return False
        return name.startswith(HEADS) or super().trains(name, chosen)

    def forward(self, src_tokens, features_only=False, classification_head_name=None, **kwargs):
        """fairseq's forward; with a head, the last layer is computed where the head reads it.

        Returns:
            logits (B, classes) with ``classification_head_name``, features (B, T, C) with
            ``features_only``, else LM logits; and fairseq's dictionary of extras.
        """
        if classification_head_name is None:
            return self.encoder(src_tokens, features_only, **kwargs)
        head = self.classification_heads[classification_head_name]
        x, extra = self.encoder(src_tokens, True, first_only=head.pooler == "first", **kwargs)
        return heads.scores(head, x, src_tokens.ne(self.encoder.dictionary.pad())), extra

    def keep_features(self, kept: KeptFeatures) -> None:
        """Keep there what stays the same for the whole run, if something does."""
        encoder = self.encoder.sentence_encoder
        number, _ = frozen_below(encoder)
        if not number:
            return
        encoder.kept = kept
        if kept:
            trains = kept.in_training and not draws(encoder, number)
            logger.info(
                f"each {'epoch' if trains else 'validation'} but the first begins behind layer "
                f"{number} of {len(encoder.layers)}: what is below is kept, in "
                f"{kept.limit_bytes // 10**6} MB of memory at most (--keep-features)"
                + (f", the rest in {kept.disk.in_words}" if kept.disk else "")
            )

    @property
    def dictionary(self):
        """The words."""
        return self.encoder.dictionary

    @property
    def longest_text(self) -> int:
        """The tokens that there is room for, beside what methods take."""
        return self.max_positions() - self.num_reserved

    @property
    def num_reserved(self) -> int:
        """Positions that the methods take from the text."""
        return self.encoder.sentence_encoder.num_reserved

    def check_pooler(self, state) -> None:
        """Raise InputError where a head of the checkpoint ``state`` reads something else."""
        heads.check_pooler(self, state)

    def own_names(self) -> set[str]:
        """As ``PeftModel.own_names``, and the heads."""
        head = {name for name in super().state_dict() if name.startswith(HEADS)}
        return super().own_names() | head

    def register_classification_head(
        self, name, num_classes=None, inner_dim=None, seed=None, **kwargs
    ):
        """Register a head, which trains from now on; with ``seed`` it is the same for every method.

        The LM head is not read by a classifier: from here on it is frozen.

        Raises:
            InputError: the pooler is unknown, or would read a prompt.
        """
        pooler = heads.pooler_of(self.args)
        prompt = self.encoder.sentence_encoder.soft_prompt
        if pooler != "first" and prompt is not None and prompt.start == 0:
            raise InputError(
                f"--pooler {pooler} reads the text, and with --prompt-placement before_bos the "
                "first features are those of the prompt. Give --prompt-placement after_bos, or "
                "--pooler first."
            )
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(stream_seed(seed, "head", name))
            if heads.kind_of(self.args) == "linear":
                head = heads.LinearHead(
                    self.args.encoder_embed_dim, num_classes, self.args.pooler_dropout
                )
                self.classification_heads[name] = head
            else:
                super().register_classification_head(name, num_classes, inner_dim, **kwargs)
        self.classification_heads[name].pooler = pooler
        self.reads_lm_head = False
        self.freeze()

    def upgrade_state_dict_named(self, state_dict, name):
        """As ``PeftModel.upgrade_state_dict_named``; heads come from the checkpoint, or are as they
        stand, with the classes of the data."""
        prefix = name + "." if name else ""
        own = super().state_dict()
        version = "encoder.sentence_encoder.version"
        state_dict.setdefault(prefix + version, own[version])
        heads.fit(self, own, state_dict, prefix + HEADS)
        # fairseq takes every head for one with a dense layer.
        linear = {key: state_dict.pop(key) for key in heads.linear_keys(state_dict, prefix + HEADS)}
        super().upgrade_state_dict_named(state_dict, name)
        state_dict.update({key: linear[key] for key in linear if key[len(prefix) :] in own})
        self._fill_lm_head(state_dict, prefix)

    def _fill_lm_head(self, state_dict, prefix):
        """A base may have no LM head, which a classifier does not read: it is as it stands then. A
        tied output matrix is the embedding's."""
        own = {key: t for key, t in super().state_dict().items() if key.startswith(LM_HEAD)}
        words = prefix + self.family.path("embed_tokens.weight")
        if self.encoder.lm_head.weight is self.encoder.sentence_encoder.embed_tokens.weight:
            del own[f"{LM_HEAD}weight"]
            if words in state_dict:
                state_dict.setdefault(f"{prefix}{LM_HEAD}weight", state_dict[words])
        lacking = not any(prefix + key in state_dict for key in own)
        if lacking and (self.accepts_base or not self.reads_lm_head):
            state_dict.update({prefix + key: own[key] for key in own})

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """As ``PeftModel.load_state_dict``; a fresh LM head that is read is told.

        Raises:
            InputError: it would stay random.
        """
        if self.reads_lm_head and not any(".lm_head." in key for key in state_dict):
            if not self.encoder.lm_head.dense.weight.requires_grad:
                raise InputError(
                    f"The base has no LM head, and --peft {self.setting.name} would leave a fresh "
                    "one as random as it is. Give a base with an LM head, or --peft full."
                )
            logger.info("the base has no LM head: a fresh one is random at first, it trains")
        return super().load_state_dict(state_dict, strict, model_cfg, args)


def load_embeddings(model, path: str) -> None:
    """Start from the arrays ``embeddings`` (V, C) and ``lm_bias`` (V) of an .npz file.

    Raises:
        InputError: the file does not hold them, or they are of another size.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: torch.from_numpy(arrays[name]) for name in ("embeddings", "lm_bias")}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(
            f"--init-embeddings {path} cannot be read ({error}). Make it with fairseq-peft "
            "svd-embeddings."
        ) from error
    encoder = model.encoder
    wanted = {
        "embeddings": encoder.sentence_encoder.embed_tokens.weight,
        "lm_bias": encoder.lm_head.bias,
    }
    with torch.no_grad():
        for name, parameter in wanted.items():
            if found[name].shape != parameter.shape:
                raise InputError(
                    f"--init-embeddings {path}: {name} is {tuple(found[name].shape)}, the model "
                    "needs "
                    f"{tuple(parameter.shape)}. Make it from the same dictionary and with the "
                    "same --dim."
                )
            parameter.copy_(found[name])
    logger.info(f"token embeddings and LM bias from {path}")


def _sizes_of(name: str) -> dict:
    """The flags that the size ``name`` stands for."""
    dims = SIZES[name]
    return {
        "encoder_layers": dims.num_layers,
        "encoder_embed_dim": dims.embed_dim,
        "encoder_ffn_embed_dim": dims.ffn_dim,
        "encoder_attention_heads": dims.num_heads,
        "max_positions": dims.max_positions,
    }


def architecture(size: str | None, method: str, name: str | None = None):
    """The function that fairseq calls to complete a config for ``--arch <size>_<method>``.

    Args:
        size: None for the sizes of the base.
        name: what ``--arch`` says, where it is not that.
    """
    name = name or f"{size or 'roberta'}_{method}"
    presets = {flag: default for flag, (_, default, _) in ROBERTA.items() if default is not None}
    presets.update(peft=method)
    presets.update(dict.fromkeys(METHOD_FIELDS))
    BASE_SIZES.name(name, f"roberta_{method}", _sizes_of(size) if size else None)

    def complete(args):
        sizes.from_start(args, BASE_SIZES, name)
        fill(args, presets)

    return complete


def _register_architectures():
    names = {"roberta_small": ("roberta_small", "full")}
    for method in methods.available():
        names[f"roberta_{method}"] = (None, method)
        names.update({f"{size}_{method}": (size, method) for size in SIZES})
    for name, (size, method) in names.items():
        if name not in ARCH_MODEL_REGISTRY:
            register_model_architecture("roberta_peft", name)(architecture(size, method, name))
    # fairseq registers a model's own name as an architecture that completes nothing.
    ARCH_CONFIG_REGISTRY["roberta_peft"] = architecture(None, "full", "roberta_peft")


_register_architectures()
