"""Hugging Face's models as fairseq's ``SequenceGenerator`` asks for a model: beam search and
sampling are fairseq's for every family.

What they lack is added here: a column for padding in the scores, and for causal models prompts of
several lengths in front of what is written.

Shape letters: B rows, K beams, L prompt tokens, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fairseq.models import FairseqEncoder, FairseqIncrementalDecoder
from torch import nn

#: Where incremental_state keeps the cache of keys and values, and how many tokens are in it.
CACHE = "fairseq_peft.hf"
#: Where incremental_state keeps the prompts, one for each beam.
PROMPTS = "fairseq_peft.prompts"


class Words:
    """What a generator asks of a dictionary: the ids of a model, and padding behind them."""

    def __init__(self, model: nn.Module, eos: int):
        self._pad, self._eos = model.pad, eos

    def __len__(self) -> int:
        return self._pad + 1

    def pad(self) -> int:
        return self._pad

    def unk(self) -> int:
        """That of padding: no word of these models stands for an unknown one."""
        return self._pad

    def eos(self) -> int:
        return self._eos


class Writer(nn.Module):
    """A model of ``hf_models``, for fairseq's ``SequenceGenerator``."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.decoder = WritingDecoder(model)
        if hasattr(model, "encoder"):
            self.encoder = model.encoder

    def max_decoder_positions(self) -> int:
        return self.model.room

    def get_normalized_probs(self, net_output, log_probs, sample=None):
        """(B, T, V + 1), in fp32: padding is never likely."""
        found = self.model.get_normalized_probs(net_output, log_probs, sample)
        return F.pad(found, (0, 1), value=float("-inf") if log_probs else 0.0)


class WritingDecoder(FairseqIncrementalDecoder):
    """The decoder; of a causal model behind ``prompts`` (B, L), padded in front, without their last
    token, which is the first of what is written."""

    def __init__(self, model):
        super().__init__(None)
        self.model = (model,)  # a tuple: the model is no child of its decoder
        self.prompts = None

    def forward(self, prev_output_tokens, encoder_out=None, incremental_state=None, **unused):
        """(B * K, T) -> logits (B * K, Q, V) of the Q tokens that are new, and fairseq's extras."""
        tokens = prev_output_tokens
        if self.prompts is not None:
            prompts = incremental_state.get(PROMPTS)
            if prompts is None:
                num_beams = len(tokens) // len(self.prompts)
                prompts = self.prompts.repeat_interleave(num_beams, 0)
                incremental_state[PROMPTS] = prompts
            tokens = torch.cat([prompts, tokens], 1)
        logits, _ = self.model[0].decoder(tokens, encoder_out, incremental_state)
        return logits, {"attn": [None]}

    def reorder_incremental_state(self, incremental_state, new_order):
        self.model[0].decoder.reorder_incremental_state(incremental_state, new_order)
        if PROMPTS in incremental_state:
            incremental_state[PROMPTS] = incremental_state[PROMPTS].index_select(0, new_order)


# ---- The halves of a model, as fairseq calls them ------------------------------------------------


def _reorder(incremental_state, new_order):
    state = incremental_state.get(CACHE)
    if state and state.get("cache") is not None:
        state["cache"].reorder_cache(new_order)


class CausalDecoder(FairseqIncrementalDecoder):
    """The model, as fairseq calls a decoder."""

    def __init__(self, model):
        super().__init__(None)
        self.model = (model,)  # a tuple: the model is no child of its decoder

    def forward(self, prev_output_tokens, encoder_out=None, incremental_state=None, **unused):
        return self.model[0](prev_output_tokens, incremental_state=incremental_state)

    def reorder_incremental_state(self, incremental_state, new_order):
        _reorder(incremental_state, new_order)

    def max_positions(self):
        return self.model[0].longest_text


class SourceEncoder(FairseqEncoder):
    """The model's encoder, as fairseq calls it."""

    def __init__(self, model):
        super().__init__(None)
        self.model = (model,)

    def forward(self, src_tokens, src_lengths=None, **unused):
        return self.model[0].encode(src_tokens)

    def reorder_encoder_out(self, encoder_out, new_order):
        features, padding = encoder_out["encoder_out"][0], encoder_out["encoder_padding_mask"][0]
        return {
            **encoder_out,
            "encoder_out": [features.index_select(1, new_order)],
            "encoder_padding_mask": [padding.index_select(0, new_order)],
        }

    def max_positions(self):
        return self.model[0].longest_text


class TargetDecoder(FairseqIncrementalDecoder):
    """The model's decoder, as fairseq calls it."""

    def __init__(self, model):
        super().__init__(None)
        self.model = (model,)

    def forward(self, prev_output_tokens, encoder_out=None, incremental_state=None, **unused):
        return self.model[0].decode(prev_output_tokens, encoder_out, incremental_state)

    def reorder_incremental_state(self, incremental_state, new_order):
        _reorder(incremental_state, new_order)

    def max_positions(self):
        return self.model[0].room
