"""The joint forward pass: the class scores of several members, each for its own batch.

It computes what ``models/encoder.py`` and ``attention.py`` compute, member by member; a test
compares the two for every method. A module whose tensors all members share runs once over all
tokens; a module that differs, dropout, and attention, which must stay within a row, run by segment
(``rows.py``). So any method can take part: what it changes runs for each member, and what it leaves
alone is shared.

A linear map with a trained update beside it (``BesideLinear``) has a method ``beside(y, x)``, y the
base's output for the input x. Its base product is shared then, too.

Shape letters: B batch, T tokens, C model dim, M members, P prefix tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_peft.layers.attention import attend
from fairseq_peft.methods.shared.adapted_linear import BesideLinear
from fairseq_peft.models import heads
from fairseq_peft.sweeps.members.rows import Rows, Stream, each

#: The blocks of a layer, each with a slot for an adapter.
PLACES = ("attention", "ffn")


class Stack:
    """The same module of each member.

    Attributes:
        modules: M modules.
        shared: whether they are one and the same function.
        beside: whether they are one frozen map with updates beside it.
    """

    def __init__(self, modules: list[nn.Module]):
        self.modules = modules
        plain = not any(_hooks(module) for module in modules)
        self.shared = plain and _same(
            modules, lambda module: [*module.parameters(), *module.buffers()]
        )
        self.beside = (
            not self.shared
            and plain
            and all(isinstance(module, BesideLinear) for module in modules)
            and _same(modules, lambda module: [module.weight, module.bias])
        )

    def __call__(self, x: Rows, streams) -> Rows:
        if self.shared:
            return x.all(self.modules[0])
        if self.beside:
            base = self.modules[0]
            y = x.all(lambda tokens: F.linear(tokens, base.weight, base.bias))
            return each(
                lambda m, y, x: self.modules[m].beside(y, x), y, x, own=True, streams=streams
            )
        return each(lambda m, x: self.modules[m](x), x, own=True, streams=streams)


def _hooks(module):
    return any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def _same(modules, tensors) -> bool:
    """Whether ``tensors(module)`` are the same frozen memory for all."""
    kinds = {type(module) for module in modules}
    found = [
        [None if t is None else (t.data_ptr(), t.shape, t.requires_grad) for t in tensors(module)]
        for module in modules
    ]
    trained = any(t is not None and t[2] for t in found[0])
    return len(kinds) == 1 and not trained and all(other == found[0] for other in found)


class JointForward:
    """Several models of one architecture, whose frozen tensors share memory, as one."""

    def __init__(self, models: list[nn.Module]):
        self.models = models
        self.encoders = [model.encoder.sentence_encoder for model in models]
        self.layers = [
            Layer([encoder.layers[index] for encoder in self.encoders])
            for index in range(len(self.encoders[0].layers))
        ]
        self.same_start = all(
            encoder.soft_prompt is None and encoder.prefix is None for encoder in self.encoders
        ) and all(
            Stack([getattr(encoder, name) for encoder in self.encoders]).shared
            for name in ("embed_tokens", "embed_positions", "layernorm_embedding")
            if getattr(self.encoders[0], name) is not None
        )
        #: Whether members with the same input compute the same thing in the first layer, too.
        self.begins_alike = self.same_start and self.layers[0].shared

    def __call__(self, batches: list[torch.Tensor], streams: list[Stream], head: str):
        """Class scores (B, classes) for each member.

        Args:
            batches: the members' src_tokens, (B, T) each.
            streams: their random numbers, which move on as far as they would in a pass of their
                own.
            head: name of the classification head; all read ``<s>`` alone, or none does.
        """
        model = self.models[0]
        (first,) = {m.classification_heads[head].pooler == "first" for m in self.models}
        padding = model.encoder.dictionary.pad()
        drawn = self._join_streams(streams) if model.training else None
        rows, keeps, prefixes = self._embed(batches, drawn)
        bf16 = self.encoders[0].bf16
        with torch.autocast(rows.x.device.type, torch.bfloat16, enabled=bf16):
            for index, layer in enumerate(self.layers):
                last = index == len(self.layers) - 1
                rows = layer(rows, keeps, [p[index] for p in prefixes], last and first, drawn)
        prompts = any(encoder.soft_prompt is not None for encoder in self.encoders)
        rows = each(lambda m, x: self.encoders[m].finish(x), rows, own=prompts)
        scores = []
        for m, model in enumerate(self.models):
            given = (model.classification_heads[head], rows.part(m), batches[m].ne(padding))
            if drawn:
                drawn[m] = drawn[m].fork()
                with drawn[m]:
                    scores.append(heads.scores(*given))
            else:
                scores.append(heads.scores(*given))
        if drawn:
            streams[:] = drawn
        return scores

    def _join_streams(self, streams):
        """The streams as a list in which those at the same place are one object."""
        joined = []
        for stream in streams:
            joined.append(next((other for other in joined if other.same(stream)), stream))
        return joined

    def _embed(self, batches, streams):
        """Rows, and for each member keep and prefixes of the layers."""
        kept = []
        for tokens in batches:
            same = [k for k in kept if k.shape == tokens.shape and torch.equal(k, tokens)]
            kept.append(same[0] if same else tokens)
        numbers = {
            id(tokens): number for number, tokens in enumerate({id(t): t for t in kept}.values())
        }
        start = Rows.join([torch.zeros(1, 1, 1)] * len(numbers), [numbers[id(t)] for t in kept])
        embedded = {}

        def embed(m, _):
            embedded[m] = self.encoders[m].embed(kept[m])
            return embedded[m][0]

        rows = each(embed, start, own=not self.same_start, streams=streams)
        leader = {rows.of[m]: m for m in embedded}
        states = [embedded[leader[number]] for number in rows.of]
        return rows, [state[1] for state in states], [state[2] for state in states]


class Layer:
    """One encoder layer of all members."""

    def __init__(self, layers: list[nn.Module]):
        self.layers = layers
        self.norm_first = layers[0].normalize_before
        self.activation = layers[0].activation_fn
        names = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj"}
        names.update(out="self_attn.out_proj", fc1="fc1", fc2="fc2")
        names.update(attention_norm="self_attn_layer_norm", norm="final_layer_norm")
        self.stacks = {
            short: Stack([layer.get_submodule(name) for layer in layers])
            for short, name in names.items()
        }
        slots = [getattr(layer, f"{place}_adapter") for layer in layers for place in PLACES]
        self.shared = all(stack.shared for stack in self.stacks.values()) and not any(slots)

    def __call__(self, x: Rows, keeps, prefixes, first_only, streams) -> Rows:
        """As ``EncoderLayer.forward``."""
        run = {
            name: lambda x, stack=stack: stack(x, streams) for name, stack in self.stacks.items()
        }
        residual = x.first() if first_only else x
        if self.norm_first:
            x = run["attention_norm"](x)
        h = self._attention(x, keeps, prefixes, first_only, streams, run)
        h = self._dropout("dropout_module", h, streams)
        h = self._adapter("attention", h, residual, streams)
        x = residual + h
        if not self.norm_first:
            x = run["attention_norm"](x)

        residual = x
        if self.norm_first:
            x = run["norm"](x)
        x = run["fc1"](x).all(self.activation)
        x = run["fc2"](self._dropout("activation_dropout_module", x, streams))
        h = self._dropout("dropout_module", x, streams)
        x = residual + self._adapter("ffn", h, residual, streams)
        return x if self.norm_first else run["norm"](x)

    def _dropout(self, name, x, streams):
        modules = [getattr(layer, name) for layer in self.layers]
        if not streams or all(module.p == 0 for module in modules):
            return x
        own = len({module.p for module in modules}) > 1
        return each(lambda m, x: modules[m](x), x, own=own, streams=streams)

    def _adapter(self, place, h, residual, streams):
        adapters = [getattr(layer, f"{place}_adapter") for layer in self.layers]
        if all(adapter is None for adapter in adapters):
            return h
        norms = [None] * len(self.layers)
        if not self.norm_first:
            norms = self.stacks["attention_norm" if place == "attention" else "norm"].modules

        def call(m, h, x):
            return h if adapters[m] is None else adapters[m](h, x, norms[m])

        return each(call, h, residual, own=True, streams=streams)

    def _attention(self, x, keeps, prefixes, first_only, streams, run):
        """As ``SelfAttention.forward``, whose projections are shared here."""
        device = x.x.device.type
        if torch.is_autocast_enabled(device):
            x = x.all(lambda tokens: tokens.to(torch.get_autocast_dtype(device)))
        query = run["q"](x.first() if first_only else x)
        key, value = run["k"](x), run["v"](x)

        def mix(m, query, key, value):
            module = self.layers[m].self_attn
            query, key, value = (
                part.view(len(part), -1, module.num_heads, module.head_dim).transpose(1, 2)
                for part in (query, key, value)
            )
            if prefixes[m] is not None:
                more = [part.to(key.dtype).expand(len(key), -1, -1, -1) for part in prefixes[m]]
                key, value = torch.cat([more[0], key], 2), torch.cat([more[1], value], 2)
            p = module.dropout_module.p if module.training else 0.0
            attended = attend(query, key, value, keeps[m], p)
            return attended.transpose(1, 2).reshape(len(query), -1, module.embed_dim)

        own = any(prefix is not None for prefix in prefixes)
        return run["out"](each(mix, query, key, value, own=own, streams=streams))
