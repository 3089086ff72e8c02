"""Which of Hugging Face's models are known here, and where they keep what methods change.

A kind of model is a description, as ``injection/family.py`` has it, and two more things about each
block, for adapters: the module that reads the block's input x, and the one that gives its output h.
Names are Hugging Face's. What a description cannot say is refused when a model is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from fairseq_peft.errors import InputError
from fairseq_peft.injection.family import Block, Family, Map, Stack
from fairseq_peft.methods.ia3 import NONE

PARTS = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class HFBlock(Block):
    """A block of a layer.

    Attributes:
        end: path of the module that puts out h, after dropout.
        dropout: owner and attribute, with a dot, of the p of a dropout that follows ``end``, where
            the layer has no module for it; empty if there is one, or no dropout.
        norm_first: whether the norm comes before the block's maps, not behind x + h.
    """

    end: str = ""
    dropout: str = ""
    norm_first: bool = True

    @property
    def begin(self) -> str:
        """Path of the module that is given x."""
        first = self.maps[0]
        return self.norm if self.norm_first else getattr(first, "path", first)

    @property
    def attention(self) -> str:
        """Path of the module of attention."""
        first = self.maps[0]
        return getattr(first, "path", first).rpartition(".")[0]


@dataclass(frozen=True)
class HFFamily(Family):
    """A kind of model.

    Attributes:
        defaults: flag -> what holds where the user leaves it alone: what Hugging Face's PEFT has.
        learned_positions: whether the text's positions have vectors of their own.
        head_dim: size of a head of keys and values.
        num_heads: how many there are.
    """

    updates_in_one: bool = True
    defaults: dict = field(default_factory=dict)
    learned_positions: bool = False
    head_dim: int = 0
    num_heads: int = 0

    def dropouts(self, model: nn.Module, stage: tuple[str, int | None]) -> list:
        """The base's dropouts of a layer, or of what is outside the layers, each with a ``p`` to
        set: modules, or numbers that a module of transformers keeps."""
        path, number = stage
        (stack,) = [stack for stack in self.stacks if stack.path == path]
        owner = model.get_submodule(self.path(path))
        layers = owner.get_submodule(stack.layers)
        root, leave_out = (owner, layers) if number is None else (layers[number], None)
        found, left = [], [root]
        while left:
            module = left.pop()
            if module is leave_out or isinstance(module, nn.Dropout):
                found += [module] if isinstance(module, nn.Dropout) else []
            elif not type(module).__module__.startswith("fairseq_peft."):  # methods keep theirs
                names = [name for name in DROPOUTS if type(getattr(module, name, None)) is float]
                found += [_Number(module, name) for name in names]
                left += module.children()
        return found


#: Attributes in which transformers' layers keep a p.
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "hidden_dropout")


class _Number:
    """An attribute of a module, as ``p``."""

    def __init__(self, owner, name):
        self.__dict__.update(owner=owner, name=name)

    def __setattr__(self, name, value):
        setattr(self.owner, self.name, value)


def _slots(width: int, heads: int, head_dim: int, prompt: bool = True) -> tuple[str, ...]:
    """The entrances of a stack. Prefixes are for models whose keys are as wide as the model."""
    fits = heads * head_dim == width
    return ("soft_prompt",) * prompt + ("prefix",) * fits


def _flags(lora: str, ia3: str, ia3_feedforward: str) -> dict:
    return {
        "peft_targets": lora,
        "ia3_targets": ia3,
        "ia3_feedforward": ia3_feedforward,
        "prompt_placement": "before_bos",
    }


def _t5(config, split):
    def attention(name, place, block):
        maps = tuple(f"layer.{place}.{block}.{part}" for part in "qkvo")
        return HFBlock(name, maps, f"layer.{place}.layer_norm", end=f"layer.{place}.dropout")

    def ffn(place):
        first = ("wi_0", "wi_1") if config.is_gated_act else ("wi",)
        maps = tuple(f"layer.{place}.DenseReluDense.{name}" for name in (*first, "wo"))
        return HFBlock("ffn", maps, f"layer.{place}.layer_norm", end=f"layer.{place}.dropout")

    own = attention("attention", 0, "SelfAttention")
    cross = attention("cross_attention", 1, "EncDecAttention")
    heads, size = config.num_heads, config.d_kv
    common = {"embedding": "embed_tokens", "others": ("final_layer_norm",), "layers": "block"}
    return HFFamily(
        "hf",
        (
            Stack(
                "encoder", (own, ffn(1)), entrances=_slots(config.d_model, heads, size), **common
            ),
            Stack(
                "decoder",
                (own, cross, ffn(2)),
                entrances=_slots(config.d_model, heads, size, prompt=False),
                **common,
            ),
        ),
        defaults=_flags("q,v", *_t5_ia3(config)),
        head_dim=size,
        num_heads=heads,
    )


def _t5_ia3(config) -> tuple[str, str]:
    """PEFT's table has another line for mT5, where it scales the gate's output; a model without a
    gate has no such map."""
    if config.model_type != "mt5":
        return "k,v,wo", "wo"
    return "k,v,wi_1" if config.is_gated_act else "k,v", NONE


def _bart(config, split):
    def attention(name, path):
        maps = tuple(f"{path}.{part}_proj" for part in ("q", "k", "v", "out"))
        return HFBlock(name, maps, f"{path}_layer_norm", maps[-1], ".dropout", norm_first=False)

    own = attention("attention", "self_attn")
    cross = attention("cross_attention", "encoder_attn")
    ffn = HFBlock("ffn", ("fc1", "fc2"), "final_layer_norm", "fc2", ".dropout", norm_first=False)
    others = ("embed_positions", "layernorm_embedding")
    slots = ("soft_prompt", "prefix")
    return HFFamily(
        "hf.model",
        (
            Stack("encoder", (own, ffn), "embed_tokens", others, entrances=slots),
            Stack("decoder", (own, cross, ffn), "embed_tokens", others, entrances=slots[1:]),
        ),
        defaults=_flags("q_proj,v_proj", "q_proj,v_proj,fc2", "fc2"),
        learned_positions=True,
        head_dim=config.d_model // config.decoder_attention_heads,
        num_heads=config.decoder_attention_heads,
    )


def _gpt2(config, split):
    qkv = Map("attn.c_attn", transposed=True, parts=PARTS if split else ())
    out = Map("attn.c_proj", transposed=True)
    mlp = Map("mlp.c_fc", transposed=True), Map("mlp.c_proj", transposed=True)
    blocks = (
        HFBlock("attention", (qkv, out), "ln_1", end="attn.resid_dropout"),
        HFBlock("ffn", mlp, "ln_2", end="mlp.dropout"),
    )
    heads = config.n_head
    keys = "k_proj,v_proj" if split else "c_attn"
    return HFFamily(
        "hf.transformer",
        (Stack("", blocks, "wte", ("wpe", "ln_f"), "h", ("soft_prompt", "prefix")),),
        defaults=_flags("q_proj,v_proj" if split else "c_attn", f"{keys},mlp.c_proj", "mlp.c_proj"),
        learned_positions=True,
        head_dim=config.n_embd // heads,
        num_heads=heads,
    )


def _bloom(config, split):
    qkv = "self_attention.query_key_value"
    if split:
        qkv = Map(qkv, parts=PARTS, heads="num_heads")
    out, first, last = "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
    dropouts = "self_attention.hidden_dropout", "mlp.hidden_dropout"
    blocks = (
        HFBlock("attention", (qkv, out), "input_layernorm", out, dropouts[0]),
        HFBlock("ffn", (first, last), "post_attention_layernorm", last, dropouts[1]),
    )
    others = ("word_embeddings_layernorm", "ln_f")
    heads = config.n_head
    keys = "k_proj,v_proj" if split else "query_key_value"
    lora = "q_proj,v_proj" if split else "query_key_value"
    return HFFamily(
        "hf.transformer",
        (Stack("", blocks, "word_embeddings", others, "h", ("soft_prompt", "prefix")),),
        defaults=_flags(lora, f"{keys},dense_4h_to_h", "dense_4h_to_h"),
        head_dim=config.hidden_size // heads,
        num_heads=heads,
    )


def _opt(config, split):
    attention = tuple(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out"))
    first = config.do_layer_norm_before
    blocks = (
        HFBlock("attention", attention, "self_attn_layer_norm", attention[-1], ".dropout", first),
        HFBlock("ffn", ("fc1", "fc2"), "final_layer_norm", "fc2", ".dropout", first),
    )
    others = ("embed_positions", "final_layer_norm")
    return HFFamily(
        "hf.model.decoder",
        (Stack("", blocks, "embed_tokens", others, "layers", ("soft_prompt", "prefix")),),
        defaults=_flags("q_proj,v_proj", "q_proj,k_proj,fc2", "fc2"),
        learned_positions=True,
        head_dim=config.hidden_size // config.num_attention_heads,
        num_heads=config.num_attention_heads,
    )


def _llama(config, split):
    attention = tuple(f"self_attn.{part}_proj" for part in "qkvo")
    ffn = tuple(f"mlp.{part}_proj" for part in ("gate", "up", "down"))
    blocks = (
        HFBlock("attention", attention, "input_layernorm", end=attention[-1]),
        HFBlock("ffn", ffn, "post_attention_layernorm", end=ffn[-1]),
    )
    heads = config.num_key_value_heads
    first = "q_proj" if config.model_type.startswith("qwen") else "k_proj"
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return HFFamily(
        "hf.model",
        (
            Stack(
                "",
                blocks,
                "embed_tokens",
                ("norm",),
                "layers",
                _slots(config.hidden_size, heads, size),
            ),
        ),
        defaults=_flags("q_proj,v_proj", f"{first},v_proj,down_proj", "down_proj"),
        head_dim=size,
        num_heads=heads,
    )


#: model_type -> the description of a config, with fused maps split or not.
CAUSAL: dict[str, Callable] = {
    "gpt2": _gpt2,
    "bloom": _bloom,
    "opt": _opt,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _llama),
}
SEQ2SEQ: dict[str, Callable] = {"t5": _t5, "mt5": _t5, "bart": _bart}
FUSED = ("gpt2", "bloom")


def describe(known: dict[str, Callable], kind, arch: str, other: str):
    """The function that describes models of ``kind``.

    Raises:
        InputError: there is none for this architecture.
    """
    if kind in known:
        return known[kind]
    raise InputError(
        f"--arch {arch} does not know models of type {kind!r}: it knows {', '.join(known)}. Give "
        f"another model, or --arch {other}."
    )
