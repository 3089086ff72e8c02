"""Tiny models of each family, for tests that must hold for every one: a new family joins by a class
here, with the same attributes, and an entry in ``FAMILIES``."""

from __future__ import annotations

import argparse
import types

import pytest
import torch
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.models.bart import BARTModel
from fairseq.models.roberta import RobertaEncoder, RobertaModel
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer_lm import TransformerLanguageModel
from helpers import TINY
from settings import identifier

import fairseq_peft.plugin  # noqa: F401
from fairseq_peft.architectures import Dims
from fairseq_peft.architectures.transformer import TransformerDims
from fairseq_peft.architectures.transformer_lm import TransformerLMDims
from fairseq_peft.models import roberta, transformer, transformer_lm
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
    def takes(peft, given):
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
    def takes(peft, given):
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


#: All of these are in "all-linear", and the contract moves each tensor by itself.
ONE_MAP = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
#: Flags of what a method computes, wherever it is.
ARITHMETIC = {
    *("adapter_layer_norm", "adapter_reduction", "adapter_scaling", "compacter_phm_dim"),
    *("fusion_layer_norm", "fusion_scaling", "lora_lr_ratio", "prefix_mlp"),
    *("prompt_init", "prompt_mlp"),
}
#: What meets in one block, or in front of one text.
UNIONS = {
    *("adapter,lora", "bitfit,adapter", "layer_norm,adapter", "lora,adapter", "lora,bitfit"),
    *("lora,prefix", "lora,prompt", "prefix,prompt"),
}


class Transformer:
    """fairseq's encoder-decoder: two layers each, C = 16, sinusoids, one embedding for all.

    Tokens are the source; the target is always the same.
    """

    name = "transformer"
    family = transformer.FAMILY
    heads = "no heads"
    has_head = False
    body = ""
    model_class = transformer.TransformerPeftModel
    config_class = transformer.TransformerPeftConfig
    stock_class = TransformerModel
    arch = "transformer_full"

    def __init__(self, dictionary):
        self.dictionary = dictionary
        self.dims = TransformerDims(
            TINY["encoder_layers"],
            TINY["encoder_layers"],
            TINY["encoder_embed_dim"],
            TINY["encoder_ffn_embed_dim"],
            TINY["encoder_attention_heads"],
            0,
            len(dictionary),
        )

    @staticmethod
    def takes(peft, given):
        """Whether there is such a model, "the last layers" being those of one stack, and it shows
        more than the same setting in the other families: where things go, not how they compute."""
        one_stack = "last_layers" in peft or any("skip_layers" in flag for flag in given)
        targets = given.get("peft_targets", "")
        named = targets.startswith("layers")  # of one stack: these names begin with the stack's
        covered = targets in ONE_MAP or not ARITHMETIC.isdisjoint(given)
        union = "," in peft and peft not in UNIONS
        return peft != "head_only" and not (one_stack or named or covered or union)

    def build(self, peft="full", seed=1, head=True, **given):
        """A model in eval mode; ``peft`` may name several methods. There is no head."""
        normalize_before = given.pop("encoder_normalize_before", False)
        sizes = {name: TINY[f"encoder_{name}"] for name in ("layers", "embed_dim")}
        sizes.update({n: TINY[f"encoder_{n}"] for n in ("ffn_embed_dim", "attention_heads")})
        flags = {
            **{
                f"{half}_{n}": value
                for n, value in sizes.items()
                for half in ("encoder", "decoder")
            },
            "encoder_normalize_before": normalize_before,
            "decoder_normalize_before": normalize_before,
            "max_source_positions": TINY["max_positions"],
            "max_target_positions": TINY["max_positions"],
            "share_all_embeddings": True,
            "peft": peft,
            **given,
        }
        args = argparse.Namespace(**flags)
        ARCH_CONFIG_REGISTRY[self.arch](args)
        torch.manual_seed(seed)
        return self.model_class.build_model(
            self.config_class.from_namespace(args), self.task(seed)
        ).eval()

    def task(self, seed=1):
        """What a model is built for."""
        return types.SimpleNamespace(
            source_dictionary=self.dictionary,
            target_dictionary=self.dictionary,
            cfg=types.SimpleNamespace(seed=seed),
        )

    def target(self, num_rows):
        """(B, 6): what the decoder reads, </s> and five words."""
        return torch.tensor([[self.dictionary.eos(), 7, 9, 20, 13, 5]]).expand(num_rows, -1)

    def scores(self, model, tokens):
        """How likely two words are to come next, (B, 2), in fp32 as fairseq's loss has them."""
        lengths = tokens.ne(self.dictionary.pad()).sum(1)
        logits, _ = model(tokens, lengths, self.target(len(tokens)))
        return logits[:, -1, 4:6].float()

    def stock(self, model):
        """fairseq's own model of the same sizes, in eval mode."""
        args = argparse.Namespace(**vars(model.args))
        return self.stock_class.build_model(args, self.task()).eval()


class BART(Transformer):
    """As ``Transformer``, with learned positions, a norm of the embeddings, gelu."""

    name = "bart"
    model_class = transformer.BARTPeftModel
    config_class = transformer.BARTPeftConfig
    stock_class = BARTModel
    arch = "bart_full"


#: Those of the contract. BART differs from a transformer in flags alone.
FAMILIES = {"roberta": Roberta, "transformer_lm": TransformerLM, "transformer": Transformer}


def parametrize(settings, families=FAMILIES):
    """A test of ``family`` (a fixture), ``peft`` and ``given``, for each family that takes it."""
    cases = [
        pytest.param(name, *setting, id=f"{name}-{identifier(*setting)}")
        for name in families
        for setting in settings
        if FAMILIES[name].takes(*setting)
    ]
    return pytest.mark.parametrize("family, peft, given", cases, indirect=["family"])
