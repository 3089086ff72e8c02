"""Tiny models of each family, for tests that must hold for every one: a new family joins by a class
here, with the same attributes, and an entry in ``FAMILIES``."""

from __future__ import annotations

import argparse
import types

import torch
from fairseq.models.roberta import RobertaEncoder, RobertaModel
from helpers import TINY

import fairseq_peft.plugin  # noqa: F401
from fairseq_peft.architectures import Dims
from fairseq_peft.models import roberta
from fairseq_peft.models.options import architecture


class Roberta:
    """Two layers, C = 16, a head of two classes called "head"."""

    name = "roberta"
    family = roberta.FAMILY
    heads = roberta.HEADS
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


FAMILIES = {"roberta": Roberta}
