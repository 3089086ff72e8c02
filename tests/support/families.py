"""Tiny models of each family, for tests that must hold for every one: a new family joins by a class
here, with the same attributes, and an entry in ``FAMILIES``."""

from __future__ import annotations

import argparse
import types

import pytest
import torch
from fairseq.models.roberta import RobertaEncoder, RobertaModel
from fairseq.models.transformer_lm import TransformerLanguageModel
from helpers import TINY
from settings import identifier

import fairseq_peft.plugin  # noqa: F401
from fairseq_peft.architectures import Dims
from fairseq_peft.architectures.transformer_lm import TransformerLMDims
from fairseq_peft.models import roberta, transformer_lm
from fairseq_peft.models.roberta import architecture


class Roberta:
    """Two layers, C = 16, a head of two classes called "head"."""

    name = "roberta"
    family = roberta.FAMILY
    heads = roberta.HEADS
    has_head = True
    body = "encoder.sentence_encoder."  # what full fine-tuning trains

    def __init__(self, dictionary):
        self.dictionary = dictionary
        self.dims = Dims(
            TINY["encoder_layers"],
            TINY["encoder_embed_dim"],
            TINY["encoder_ffn_embed_dim"],
            TINY["encoder_attention_heads"],
            TINY["max_positions"],
            len(dictionary),
        )

    @staticmethod
    def takes(peft):
        """Whether there is such a model."""
        return True

    def build(self, peft="full", seed=1, num_classes=2, head=True, **given):
        """A model in eval mode; ``peft`` may name several methods."""
        args = argparse.Namespace(_name="roberta_small", **{**TINY, "peft": peft, **given})
        architecture("roberta_small", "full")(args)
        task = types.SimpleNamespace(
            source_dictionary=self.dictionary, cfg=types.SimpleNamespace(seed=seed)
        )
        torch.manual_seed(seed)
        model = roberta.RobertaPeftModel.build_model(args, task)
        if head:
            model.register_classification_head("head", num_classes=num_classes, seed=seed)
        return model.eval()

    def scores(self, model, tokens):
        """Class scores (B, 2)."""
        return model(tokens, features_only=True, classification_head_name="head")[0]

    def stock(self, model):
        """fairseq's own model of the same sizes, with a head, in eval mode."""
        stock = RobertaModel(model.args, RobertaEncoder(model.args, self.dictionary))
        stock.register_classification_head("head", num_classes=2)
        return stock.eval()


WIDTHS = ("decoder_embed_dim", "decoder_input_dim", "decoder_output_dim")


class TransformerLM:
    """fairseq's decoder-only language model: two layers, C = 16, norms first, tied embeddings."""

    name = "transformer_lm"
    family = transformer_lm.FAMILY
    heads = "no heads"
    has_head = False
    body = "decoder."

    def __init__(self, dictionary):
        self.dictionary = dictionary
        self.dims = TransformerLMDims(
            TINY["encoder_layers"],
            TINY["encoder_embed_dim"],
            TINY["encoder_ffn_embed_dim"],
            TINY["encoder_attention_heads"],
            TINY["max_positions"],
            len(dictionary),
            tied=True,
        )

    @staticmethod
    def takes(peft):
        """Whether there is such a model."""
        return peft != "head_only"

    def build(self, peft="full", seed=1, head=True, **given):
        """A model in eval mode; ``peft`` may name several methods. There is no head."""
        # In settings made for RoBERTa, whose norms come last: the other place.
        normalize_before = not given.pop("encoder_normalize_before", False)
        flags = {
            "decoder_layers": TINY["encoder_layers"],
            "decoder_attention_heads": TINY["encoder_attention_heads"],
            "decoder_ffn_embed_dim": TINY["encoder_ffn_embed_dim"],
            **dict.fromkeys(WIDTHS, TINY["encoder_embed_dim"]),
            "max_target_positions": TINY["max_positions"],
            "tokens_per_sample": 12,
            "decoder_learned_pos": True,
            "decoder_normalize_before": normalize_before,
            "share_decoder_input_output_embed": True,
            "peft": peft,
            **given,
        }
        config = transformer_lm.TransformerLMPeftConfig
        args = config.from_namespace(argparse.Namespace(**flags))
        task = types.SimpleNamespace(
            source_dictionary=self.dictionary,
            target_dictionary=self.dictionary,
            cfg=types.SimpleNamespace(seed=seed),
        )
        torch.manual_seed(seed)
        return transformer_lm.TransformerLMPeftModel.build_model(args, task).eval()

    def scores(self, model, tokens):
        """How likely two words are to come next, (B, 2), in fp32 as fairseq's loss has them."""
        logits, _ = model(tokens)
        last = tokens.ne(self.dictionary.pad()).sum(1) - 1
        return logits[range(len(tokens)), last][:, 4:6].float()

    def stock(self, model):
        """fairseq's own model of the same sizes, in eval mode."""
        task = types.SimpleNamespace(
            source_dictionary=self.dictionary, target_dictionary=self.dictionary
        )
        return TransformerLanguageModel.build_model(model.args, task).eval()


FAMILIES = {"roberta": Roberta, "transformer_lm": TransformerLM}


def parametrize(settings, families=FAMILIES):
    """A test of ``family`` (a fixture), ``peft`` and ``given``, for each family that takes it."""
    cases = [
        pytest.param(name, *setting, id=f"{name}-{identifier(*setting)}")
        for name in families
        for setting in settings
        if FAMILIES[name].takes(setting[0])
    ]
    return pytest.mark.parametrize("family, peft, given", cases, indirect=["family"])
