"""RoBERTa with any method injected: ``roberta_small``, ``roberta_base``, ``roberta_large``,
each with a suffix a method."""

from __future__ import annotations

import argparse
import logging

import numpy as np
import torch
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import ARCH_MODEL_REGISTRY, register_model, register_model_architecture
from fairseq.models.roberta import RobertaModel
from omegaconf import OmegaConf

from fairseq_peft import methods
from fairseq_peft.architectures import SIZES
from fairseq_peft.errors import InputError
from fairseq_peft.injection.family import Family
from fairseq_peft.models import heads
from fairseq_peft.models.encoder import STACK, PeftRobertaEncoder
from fairseq_peft.models.options import RobertaPeftConfig, architecture, decide_precision
from fairseq_peft.models.peft_model import PeftModel
from fairseq_peft.seeds import stream_seed

logger = logging.getLogger(__name__)

HEADS = "classification_heads."

FAMILY = Family("encoder.sentence_encoder", (STACK,))


@register_model("roberta_peft", dataclass=RobertaPeftConfig)
class RobertaPeftModel(PeftModel, RobertaModel):
    """fairseq's RoBERTa with methods of ``fairseq_peft.methods`` injected."""

    family = FAMILY
    reads_lm_head = True

    @classmethod
    def add_args(cls, parser):
        gen_parser_from_dataclass(parser, RobertaPeftConfig(), delete_default=True)

    @classmethod
    def build_model(cls, cfg, task):
        """Build the plain model, then inject the method; seeds come from the task."""
        values = OmegaConf.to_container(cfg) if OmegaConf.is_config(cfg) else vars(cfg)
        args = argparse.Namespace(**values)
        if args.encoder_embed_dim % args.encoder_attention_heads:
            raise InputError(
                f"--encoder-embed-dim {args.encoder_embed_dim} does not divide into "
                "--encoder-attention-heads "
                f"{args.encoder_attention_heads} heads: give a multiple."
            )
        decide_precision(cfg, args)
        model = cls(args, PeftRobertaEncoder(args, task.source_dictionary))
        if args.init_embeddings:
            load_embeddings(model, args.init_embeddings)
        model.set_up(args, task)
        return model

    def trains(self, name, chosen):
        """Of the heads, all that are read: an LM head is not, where there are others."""
        if name.startswith("encoder.lm_head.") and not self.reads_lm_head:
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
        if self.accepts_base and self.args.reset_head:
            names = tuple(f"{prefix}{HEADS}{name}." for name in self.classification_heads)
            for key in [key for key in state_dict if key.startswith(names)]:
                del state_dict[key]
        self._check_heads(state_dict, prefix)
        missing = [key for key in own if key.startswith(HEADS) and prefix + key not in state_dict]
        if missing and not self.accepts_base:
            raise InputError(
                f"The checkpoint has no {missing[0]}: its classification head is missing, so it "
                "cannot classify. Give a checkpoint that fairseq-train wrote with --task "
                "sentence_classification."
            )
        # fairseq takes every head for one with a dense layer.
        linear = {key: state_dict.pop(key) for key in heads.linear_keys(state_dict, prefix + HEADS)}
        super().upgrade_state_dict_named(state_dict, name)
        state_dict.update({key: linear[key] for key in linear if key[len(prefix) :] in own})

    def _check_heads(self, state_dict, prefix):
        for head_name, head in self.classification_heads.items():
            heads.check_kind(f"{prefix}{HEADS}{head_name}", head, state_dict)
            found = state_dict.get(f"{prefix}{HEADS}{head_name}.out_proj.weight")
            if found is None or found.shape[0] == head.out_proj.out_features:
                continue
            raise InputError(
                f"The checkpoint's head {head_name!r} has {found.shape[0]} classes, the data has "
                f"{head.out_proj.out_features}. Pass --reset-head to start a fresh head, or give "
                "another checkpoint."
            )


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


def _register_architectures():
    for size in SIZES:
        for method in methods.available():
            names = [f"{size}_{method}"]
            if size == "roberta_small" and method == "full":
                names.append(size)
            for name in names:
                if name not in ARCH_MODEL_REGISTRY:
                    register_model_architecture("roberta_peft", name)(architecture(size, method))


_register_architectures()
