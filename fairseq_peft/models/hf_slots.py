"""What Hugging Face's models lack: places for prompts, prefixes and adapters, and for an update of
the output that is tied to the embedding.

``add`` makes the places, before methods are injected; ``connect`` makes the model's layers read
them, afterwards, when the modules that are there will stay.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery
from fairseq_peft.layers.dropout import QuickDropout
from fairseq_peft.layers.hf_attention import BloomAttention
from fairseq_peft.models.decoder import OutputProjection

ADAPTED = ("attention", "ffn")
#: What transformers computes in eight passes, all of them kept for the backward pass, and torch in
#: one: GELU by tanh.
GELUS = ("NewGELUActivation", "BloomGelu")


def add(model: nn.Module, half_dtype=None) -> None:
    """Make the places in ``model.hf``, which ``model.family`` describes."""
    hf, family = model.hf, model.family
    words = hf.get_input_embeddings()
    plain = words
    if type(words) is not nn.Embedding:  # BART's multiplies: the model here does
        plain = nn.Embedding(*words.weight.shape, words.padding_idx, device="meta")
        plain.weight = words.weight
    for owner in list(hf.modules()):
        for name, child in list(owner.named_children()):
            tied = isinstance(child, nn.Embedding) and child.weight is words.weight
            if tied:  # one module, where transformers has several with one tensor
                setattr(owner, name, plain)
            if type(child).__name__ in GELUS:
                setattr(owner, name, nn.GELU(approximate="tanh"))
    hf.set_output_embeddings(OutputProjection(hf.get_output_embeddings().weight, half_dtype))
    for stack in family.stacks:
        owner = model.get_submodule(family.path(stack.path))
        for slot in stack.entrances:
            setattr(owner, slot, None)
    for place in surgery.places(model, family):
        for block in place.stack.blocks:
            if block.name in ADAPTED:
                setattr(place.layer, f"{block.name}_adapter", None)
    for module in hf.modules():
        if type(module) is nn.Dropout:
            module.__class__ = QuickDropout
        if type(module).__name__ == "BloomAttention":
            known = {"__module__": type(module).__module__}
            module.__class__ = type("BloomAttention", (BloomAttention, type(module)), known)


def connect(model: nn.Module) -> None:
    """Let the layers of ``model.hf`` read what methods have put into the places."""
    family = model.family
    for place in surgery.places(model, family):
        ends = [_End(place.layer, block) for block in place.stack.blocks]
        if any(end.adapter is not None for end in ends):
            for end in ends:
                end.take_over()
    for stack in family.stacks:
        owner = model.get_submodule(family.path(stack.path))
        if getattr(owner, "prefix", None) is not None:
            check_attention(model, "a prefix")
            prefixes = _Prefixes(owner, stack, family.num_heads)
            owner.register_forward_pre_hook(prefixes.hand_out)
            owner.register_forward_hook(prefixes.take_back)


def attentions(model: nn.Module) -> list[nn.Module]:
    """All attentions of ``model.hf``."""
    family = model.family
    owners = [model.get_submodule(family.path(stack.path)) for stack in family.stacks]
    return [one for pair in zip(owners, family.stacks) for one in _attentions(*pair)]


def _attentions(owner, stack):
    return [
        layer.get_submodule(block.attention)
        for layer in owner.get_submodule(stack.layers)
        for block in stack.blocks
        if "attention" in block.name
    ]


def check_attention(model: nn.Module, what: str) -> None:
    """Raise InputError where an attention computes by itself, as those of older versions, and would
    not read ``what`` is told to ``layers/hf_attention.py``."""
    for attention in attentions(model):
        reads = "ALL_ATTENTION_FUNCTIONS" in type(attention).forward.__code__.co_names
        if not reads and not isinstance(attention, BloomAttention):
            raise InputError(
                f"{type(attention).__name__} of this version of transformers would not read "
                f"{what}. Install transformers 5.23 or later, or do without."
            )


class _End:
    """The end of a block: gives the adapter in its slot what it asks for, the block's output h, its
    input x, and the norm that follows x + h."""

    def __init__(self, layer, block):
        self.layer, self.block = layer, block
        self.x = None
        self.p = 0.0

    @property
    def adapter(self):
        return getattr(self.layer, f"{self.block.name}_adapter", None)

    def take_over(self) -> None:
        """Stand behind the block's last module, with the dropout that would follow it."""
        block, layer = self.block, self.layer
        layer.get_submodule(block.begin).register_forward_pre_hook(self.begin)
        layer.get_submodule(block.end).register_forward_hook(self.end)
        if block.dropout:
            path, _, name = block.dropout.rpartition(".")
            owner = layer.get_submodule(path)
            # One number may be that of several blocks.
            self.p = owner.__dict__.setdefault("taken_dropout", getattr(owner, name))
            setattr(owner, name, 0.0)

    def begin(self, module, inputs):
        self.x = inputs[0]

    def end(self, module, inputs, h):
        x, self.x = self.x, None
        h = F.dropout(h, self.p, self.layer.training)
        if self.adapter is None:
            return h
        norm = None if self.block.norm_first else self.layer.get_submodule(self.block.norm)
        return self.adapter(h, x, norm)


class _Prefixes:
    """Hands each attention of a stack its keys and values, for as long as the stack computes."""

    def __init__(self, owner, stack, num_heads):
        self.owner, self.stack, self.num_heads = owner, stack, num_heads

    def attentions(self):
        return _attentions(self.owner, self.stack)

    def hand_out(self, module, inputs):
        for attention, pair in zip(self.attentions(), self.owner.prefix(self.num_heads)):
            attention.prefix = pair

    def take_back(self, module, inputs, output):
        for attention in self.attentions():
            attention.prefix = None
