"""Hugging Face's models as fairseq's, with any method injected.

    --arch hf_causal_lm --hf-model DIR      GPT-2, BLOOM, OPT, and those built like Llama
    --arch hf_seq2seq --hf-config t5-small  T5, mT5, BART

The layers are transformers' own, and so are the names and shapes of the state, below ``hf.``.
Token ids are the tokenizer's; padding has an id behind all of them, ``pad``, for some models have
none, and others begin answers with theirs.

Shape letters: B batch, S source tokens, T tokens, C model dim, V vocabulary, P prompt tokens.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from typing import NamedTuple

import torch
import torch.nn.functional as F
from fairseq.models import BaseFairseqModel, register_model

from fairseq_peft import methods, precision
from fairseq_peft.architectures.hf_configs import CONFIGS
from fairseq_peft.digests import combine, digest
from fairseq_peft.errors import InputError
from fairseq_peft.layers.hf_attention import apart
from fairseq_peft.methods.base import flag_name
from fairseq_peft.models import hf_base, hf_families, hf_slots
from fairseq_peft.models.hf_search import CACHE, CausalDecoder, SourceEncoder, TargetDecoder
from fairseq_peft.models.options import (
    COMMON,
    WRITING,
    check_dropouts,
    config_class,
    decide_precision,
    fill,
    namespace,
)
from fairseq_peft.models.peft_model import PeftModel

FLAGS = {
    "hf_model": (str, "", "folder of a model of Hugging Face's: config.json, *.safetensors"),
    "hf_config": (
        str,
        "",
        "random weights for a config: t5-small, gpt2, bloom-560m, or a config.json",
    ),
    "hf_split_qkv": (
        bool,
        False,
        "name query, key and value of a fused map apart: q_proj, k_proj, v_proj (off)",
    ),
    **WRITING,
    **COMMON,
}

HFConfig = config_class("HFConfig", FLAGS)

#: Name in a state of the SHA-256 of what it leaves out, for that is in the folder of the base.
BASE = "base_sha256"
#: Bytes of keys and values that prompts may have which are read at once.
KEPT = 2**28
#: A length that no text has, for models without a limit of their own.
UNLIMITED = 1_000_000


class Read(NamedTuple):
    """Prompts that a model has read, for any number of answers.

    Attributes:
        tokens: (B, S).
        state: the encoder's output; of a causal model its cache of keys and values.
        logits: (B, 1, V) behind the prompts; None of an encoder-decoder.
    """

    tokens: torch.Tensor
    state: dict
    logits: torch.Tensor | None = None


class HFModel(PeftModel, BaseFairseqModel):
    """A model of transformers, ``hf``, in which ``family`` says what methods change.

    Attributes:
        base_digests: SHA-256 of each tensor of the folder that it came from; empty where there is
            none.
        pad: the id of padding, V.
        embed_scale: what word embeddings are multiplied with.
    """

    arch = other = auto = ""
    known = {}
    compiles = False
    classification_heads = {}  # a classifier has some; what writes checkpoints asks for them
    untold = (
        "which this task does not tell it: here it would train as something else. Choose another "
        "method."
    )

    def __init__(self, hf, family):
        super().__init__()
        self.hf = hf
        self.family = family
        self.base_digests = {}
        self.pad = hf.config.vocab_size
        self.embed_scale = getattr(hf.get_input_embeddings(), "embed_scale", 1.0)

    @classmethod
    def build_model(cls, cfg, task):
        """Build or read the model, then inject the methods; seeds come from the task.

        Raises:
            InputError: the flags mean a model, or a method, that is not for this family.
        """
        args = namespace(cfg, {name: default for name, (_, default, _) in FLAGS.items()})
        decide_precision(args)
        kind, config = hf_base.read_config(args.hf_model, args.hf_config)
        describe = hf_families.describe(cls.known, kind, cls.arch, cls.other)
        check_dropouts(config, args.hf_config or os.path.join(args.hf_model, "config.json"))
        if args.hf_split_qkv and kind not in hf_families.FUSED:
            raise InputError(
                f"--hf-split-qkv would be ignored: models of type {kind!r} keep query, key and "
                "value apart. Leave it out."
            )
        # A checkpoint finds them from wherever it is read.
        if args.hf_model:
            args.hf_model = os.path.abspath(args.hf_model)
        elif args.hf_config not in CONFIGS:
            args.hf_config = os.path.abspath(args.hf_config)
        hf = hf_base.build(kind, config, args.hf_model, cls.auto)
        model = cls(hf, describe(hf.config, args.hf_split_qkv))
        model.args = args
        if args.hf_model:
            model.base_digests = model.digests(model.state_dict())
        fill(args, _of_methods(args.peft, model.family.defaults))
        model.check(args)
        hf_slots.add(model, precision.half(args.precision))
        model.set_up(args, task)
        hf_slots.connect(model)
        model.adopt_base()
        return model

    def check(self, args) -> None:
        """Raise InputError where ``args`` mean a method that this model has no place for."""
        names = methods.names_in(str(args.peft))
        if "head_only" in names:
            raise InputError(
                "--peft head_only trains a classification head alone, and this model has none: "
                "nothing would train. Choose another method."
            )
        if "fusion" in names:
            raise InputError(
                "--peft fusion chooses among adapters of classifiers, and this model is none. "
                "Choose another method."
            )
        reserved = getattr(args, "prefix_positions", None) == "reserved"
        if "prefix" in names and reserved and not self.family.learned_positions:
            raise InputError(
                "--prefix-positions reserved would be ignored: this model knows distances between "
                "tokens, not positions. Leave it out."
            )

    def entrance(self, number: int):
        """The module of the stack with this number, which has the slots of prompt and prefix."""
        return self.hf.get_submodule(self.family.path(self.family.stacks[number].path)[3:])

    def embed(self, tokens, number: int):
        """tokens (B, T) -> (B, T, C), of the stack with this number."""
        table = self.entrance(number).get_input_embeddings()
        return table(tokens.masked_fill(tokens.eq(self.pad), 0)) * self.embed_scale

    @property
    def room(self) -> int:
        """The tokens that there are positions for."""
        if not self.family.learned_positions:
            return UNLIMITED
        return self.hf.config.max_position_embeddings

    @property
    def num_reserved(self) -> int:
        """Positions that the methods take from the text."""
        owner = self.entrance(0)
        prompt = owner.soft_prompt.num_tokens if owner.soft_prompt is not None else 0
        prefix = getattr(owner, "prefix", None)
        return prompt + (prefix.num_reserved if prefix is not None else 0)

    @property
    def longest_text(self) -> int:
        """The tokens that there is room for, beside what methods take."""
        return self.room - self.num_reserved

    def check_length(self, num_tokens: int) -> None:
        """Raise InputError where there are more tokens than positions."""
        if num_tokens > self.longest_text:
            raise InputError(
                f"A batch has {num_tokens} tokens and {self.num_reserved} prompt or prefix tokens; "
                f"the model has {self.room} positions. Give shorter texts."
            )

    def together(self, prompts) -> list[list[int]]:
        """The numbers of the prompts that can be one batch, of whatever lengths."""
        return [list(range(len(prompts)))]

    read_together = together

    @property
    def base_sha256(self) -> str:
        """Of all tensors of the folder that it came from."""
        return combine(self.base_digests)

    @staticmethod
    def digests(state) -> dict[str, str]:
        """Name -> SHA-256 of a tensor; one tensor that has several names is read once."""
        known = {}
        for tensor in state.values():
            if tensor.data_ptr() not in known:
                known[tensor.data_ptr()] = digest("", tensor)
        return {name: known[tensor.data_ptr()] for name, tensor in state.items()}

    def leave_out_base(self, state: dict) -> dict:
        """The state without what is as it was in the folder that the model came from, and with the
        SHA-256 of that; the same where it came from none."""
        own = self.digests(state)
        same = {name: own[name] for name in own if own[name] == self.base_digests.get(name)}
        if not same:
            return state
        told = torch.tensor(list(bytes.fromhex(combine(same))), dtype=torch.uint8)
        return {**{name: t for name, t in state.items() if name not in same}, BASE: told}

    def upgrade_state_dict_named(self, state_dict, name):
        """As ``PeftModel.upgrade_state_dict_named``; what ``leave_out_base`` has left out comes
        from this model, which has it from its folder.

        Raises:
            InputError: its folder has something else.
        """
        told = state_dict.pop(BASE, None)
        if told is not None:
            own = self.state_dict()
            missing = [key for key in self.base_digests if key not in state_dict]
            if bytes(told.tolist()).hex() != combine({k: self.base_digests[k] for k in missing}):
                raise InputError(
                    f"The checkpoint leaves out {len(missing)} tensors of its base, and "
                    f"{self.args.hf_model or 'the model'} has others. Give the folder that it was "
                    "trained on (--model-overrides \"{'hf_model': 'DIR'}\")."
                )
            state_dict.update({key: own[key] for key in missing})
        super().upgrade_state_dict_named(state_dict, name)

    def get_targets(self, sample, net_output):
        return sample["target"]

    def get_normalized_probs(self, net_output, log_probs, sample=None):
        """(B, T, V) in fp32."""
        logits = net_output[0].float()
        return F.log_softmax(logits, -1) if log_probs else F.softmax(logits, -1)


@register_model("hf_causal_lm", dataclass=HFConfig)
class HFCausalLM(HFModel):
    """A decoder-only language model."""

    arch, other = "hf_causal_lm", "hf_seq2seq"
    auto = "AutoModelForCausalLM"
    known = hf_families.CAUSAL
    supported_targets = {"future"}

    def __init__(self, hf, family):
        super().__init__(hf, family)
        self.__dict__["decoder"] = CausalDecoder(self)  # no child: it is the model itself

    def forward(
        self,
        src_tokens,
        src_lengths=None,
        incremental_state=None,
        num_logits=None,
        packed=None,
        predicted=None,
        **unused,
    ):
        """src_tokens (B, T) -> logits (B, T, V) and fairseq's extras; with ``incremental_state``
        (B, Q, V) for the Q tokens that are new; with ``num_logits`` of so many tokens, the last;
        with ``packed`` and ``predicted`` what ``packed_logits`` says.

        A prompt stands in front of the text, or behind its first token; the logits that predict
        the second token are then those of the prompt's last.
        """
        if packed is not None:
            return self.packed_logits(src_tokens, packed, predicted), {}
        num_tokens = src_tokens.shape[1]
        self.check_length(num_tokens)
        state = incremental_state.setdefault(CACHE, {}) if incremental_state is not None else {}
        seen = state.get("num_tokens", 0)
        owner = self.entrance(0)
        padding = src_tokens.eq(self.pad)
        x = self.embed(src_tokens[:, seen:], 0)
        if owner.soft_prompt is not None:
            if owner.soft_prompt.start and padding[:, 0].any():
                raise InputError(
                    "A batch begins with padding, so a soft prompt cannot stand behind the first "
                    "token. Pad at the right, or give --prompt-placement before_bos."
                )
            if not seen:
                x, _ = owner.soft_prompt.insert(x, padding)
            padding = F.pad(padding, (owner.soft_prompt.num_tokens, 0))
        keep = (~padding).long()
        prefix = getattr(owner, "prefix", None)
        positions = keep.cumsum(1) - 1 + (prefix.num_reserved if prefix is not None else 0)
        given = {"position_ids": positions.clamp(min=0)[:, -x.shape[1] :]}
        if num_logits is not None:
            given["logits_to_keep"] = num_logits
        with precision.autocast(x, precision.half(self.args.precision)):
            out = self.hf(
                inputs_embeds=x,
                attention_mask=keep,
                past_key_values=state.get("cache"),
                use_cache=incremental_state is not None,
                **given,
            )
        if incremental_state is not None:
            state.update(cache=out.past_key_values, num_tokens=num_tokens)
        return out.logits[:, seen - num_tokens :], {}

    def packed_logits(self, tokens, lengths: list[int], predicted):
        """tokens (1, N), rows of ``lengths`` one behind the other -> logits (1, A, V) at the places
        ``predicted`` (A,).

        Each row is what it would be alone: it sees itself, the prompt that it gets and the prefix,
        and its positions begin anew. So N may be more than there are positions.
        """
        self.check_length(max(lengths))
        owner = self.entrance(0)
        x = self.embed(tokens, 0)
        prompt = owner.soft_prompt
        if prompt is not None:
            of_row = torch.bucketize(predicted, _ends(lengths).to(predicted.device), right=True)
            predicted = predicted + prompt.num_tokens * (of_row + 1)
            rows = zip(x.split(lengths, 1), tokens.split(lengths, 1))
            x = torch.cat([prompt.insert(row, ids)[0] for row, ids in rows], 1)
            lengths = [length + prompt.num_tokens for length in lengths]
        prefix = getattr(owner, "prefix", None)
        first = prefix.num_reserved if prefix is not None else 0
        positions = torch.cat([torch.arange(first, first + length) for length in lengths])
        with apart(lengths), precision.autocast(x, precision.half(self.args.precision)):
            out = self.hf(
                inputs_embeds=x,
                position_ids=positions.to(tokens.device)[None],
                use_cache=False,
                logits_to_keep=predicted,
            )
        return out.logits

    def together(self, prompts):
        """As above; those of one length where a soft prompt stands behind the first token."""
        soft = self.entrance(0).soft_prompt
        if soft is None or not soft.start:
            return super().together(prompts)
        groups = {}
        for i, prompt in enumerate(prompts):
            groups.setdefault(len(prompt), []).append(i)
        return list(groups.values())

    def read_together(self, prompts):
        """As ``together``, and no more at once than ``KEPT`` has room for."""
        layers = len(self.entrance(0).get_submodule(self.family.stacks[0].layers))
        a_token = 2 * layers * self.family.num_heads * self.family.head_dim
        a_token *= 2 if precision.half(self.args.precision) else 4
        found = []
        for rows in self.together(prompts):
            size = max(1, KEPT // (a_token * max(len(prompts[i]) for i in rows)))
            found += [rows[first : first + size] for first in range(0, len(rows), size)]
        return found

    def read(self, tokens) -> Read:
        """tokens (B, S), prompts, padded in front -> what ``logits_after`` is to be given."""
        state = {}
        logits, _ = self(tokens, incremental_state=state, num_logits=1)
        return Read(tokens, state, logits)

    def logits_after(self, read: Read, before):
        """before (B, T - 1), all of an answer but its end -> logits (B, T, V) of it and its end."""
        if not before.shape[1]:
            return read.logits
        kept = read.state[CACHE]
        state = {CACHE: {**kept, "cache": _twin(kept["cache"])}}
        logits, _ = self(torch.cat([read.tokens, before], 1), incremental_state=state)
        return torch.cat([read.logits, logits], 1)

    def max_positions(self):
        """The tokens that there is room for."""
        return self.longest_text


def _twin(cache):
    """Another cache of the same keys and values, which may grow by itself: transformers' layers of
    one make new tensors, and leave these as they are."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


def _ends(lengths) -> torch.Tensor:
    """Where rows of ``lengths`` end, one behind the other."""
    return torch.tensor(lengths).cumsum(0)


@register_model("hf_seq2seq", dataclass=HFConfig)
class HFSeq2Seq(HFModel):
    """An encoder-decoder. A soft prompt stands in front of the source, where the decoder sees it,
    too."""

    arch, other = "hf_seq2seq", "hf_causal_lm"
    auto = "AutoModelForSeq2SeqLM"
    known = hf_families.SEQ2SEQ

    def __init__(self, hf, family):
        super().__init__(hf, family)
        self.__dict__["encoder"] = SourceEncoder(self)
        self.__dict__["decoder"] = TargetDecoder(self)

    def forward(self, src_tokens, src_lengths, prev_output_tokens, **unused):
        """src_tokens (B, S), prev_output_tokens (B, T) -> logits (B, T, V) and fairseq's extras."""
        return self.decode(prev_output_tokens, self.encode(src_tokens))

    def encode(self, src_tokens) -> dict:
        """(B, S) -> features (P + S, B, C) and where there is none to see (B, P + S), as lists."""
        self.check_length(src_tokens.shape[1])
        padding = src_tokens.eq(self.pad)
        x = self.embed(src_tokens, 0)
        prompt = self.entrance(0).soft_prompt
        if prompt is not None:
            x, padding = prompt.insert(x, padding)
        with precision.autocast(x, precision.half(self.args.precision)):
            features = self.entrance(0)(inputs_embeds=x, attention_mask=(~padding).long())[0]
        return {
            "encoder_out": [features.transpose(0, 1)],
            "encoder_padding_mask": [padding],
            "encoder_embedding": [],
            "encoder_states": [],
            "src_tokens": [],
            "src_lengths": [],
        }

    def decode(self, prev_output_tokens, encoder_out, incremental_state=None):
        """(B, T) -> logits (B, T, V); with ``incremental_state``, of the tokens that are new."""
        num_tokens = prev_output_tokens.shape[1]
        if num_tokens > self.room:
            raise InputError(
                f"An answer has {num_tokens} tokens; the model has {self.room} positions. Give a "
                "shorter one."
            )
        state = incremental_state.setdefault(CACHE, {}) if incremental_state is not None else {}
        seen = state.get("num_tokens", 0)
        x = self.embed(prev_output_tokens[:, seen:], 1)
        features = encoder_out["encoder_out"][0].transpose(0, 1)
        with precision.autocast(x, precision.half(self.args.precision)):
            out = self.hf(
                encoder_outputs=(features,),
                attention_mask=(~encoder_out["encoder_padding_mask"][0]).long(),
                # Padding is at the right: what stands before it does not see it.
                decoder_attention_mask=torch.ones_like(prev_output_tokens),
                decoder_inputs_embeds=x,
                past_key_values=state.get("cache"),
                use_cache=incremental_state is not None,
            )
        if incremental_state is not None:
            state.update(cache=out.past_key_values, num_tokens=num_tokens)
        return out.logits, {}

    def read(self, tokens) -> Read:
        """tokens (B, S), sources -> what ``logits_after`` is to be given."""
        return Read(tokens, self.encode(tokens))

    def logits_after(self, read: Read, before):
        """before (B, T), what answers begin with, and all of them but their end -> logits
        (B, T, V)."""
        return self.decode(before, read.state)[0]

    def max_positions(self):
        """The tokens that there is room for, in source and target."""
        return self.longest_text, self.room


#: The architectures, by the names that checkpoints have.
ARCHS = {model.arch: model for model in (HFCausalLM, HFSeq2Seq)}


def _of_methods(peft: str, flags: dict) -> dict:
    """Those of ``flags`` that belong to the methods that ``peft`` names."""
    names = [name for name in methods.names_in(peft) if name in methods.available()]
    own = {
        flag_name(name, knob)
        for name in names
        for knob in dataclasses.fields(methods.get(name).Config)
    }
    return {flag: value for flag, value in flags.items() if flag in own}
