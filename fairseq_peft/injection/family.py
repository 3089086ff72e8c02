"""What a family of models is: a description of where its models keep what methods change.

A family is stacks of layers below one module, the root. A layer is blocks, each with linear maps
and a layer norm. RoBERTa is one stack, whose layers stand right below the root:

    Family("encoder.sentence_encoder", (Stack(blocks=(attention, ffn), embedding="embed_tokens"),))
    names: embed_tokens, layers.0.self_attn.q_proj, layers.0.fc1, ...

An encoder and a decoder are two stacks, here with the model itself for root:

    Family("", (Stack("encoder", (attention, ffn)), Stack("decoder", (attention, cross, ffn))))
    names: encoder.layers.0.fc1, decoder.layers.0.encoder_attn.q_proj, ...

``surgery.py`` finds in a model what is described here; ``maps.py`` is about maps that are no
``nn.Linear``.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Map:
    """A linear map that its layer does not keep as an ``nn.Linear`` of its own.

    GPT-2's ``Map("attn.c_attn", transposed=True, parts=("q_proj", "k_proj", "v_proj"))`` is three
    maps by name, ``layers.0.attn.c_attn.q_proj`` and so on; without ``parts`` it is one.

    Attributes:
        path: where it is in the layer.
        transposed: whether its weight is (in, out), as in GPT-2's ``Conv1D``, not (out, in).
        parts: names of the maps, all of one size, whose outputs it puts side by side.
        heads: attribute of the layer with the number of heads, where the outputs of all parts
            stand side by side for each head, as in BLOOM; empty where they do so as a whole.
    """

    path: str
    transposed: bool = False
    parts: tuple[str, ...] = ()
    heads: str = ""


@dataclass(frozen=True)
class Block:
    """A part of a layer that adds what it computes to what it is given.

        Block("ffn", ("fc1", "fc2"), "final_layer_norm")

    Attributes:
        name: ``attention``, ``cross_attention`` or ``ffn``. A layer with the attribute
            ``<name>_adapter`` calls what is there, unless it is None, with the block's output h,
            its input x, and the layer norm that follows x + h (None where norms come first), and
            goes on with what it returns for h.
        maps: paths of the linear maps in the layer, in the order in which data meets them, the one
            that ends the block last; a ``Map`` for what is no ``nn.Linear``.
        norm: path of the layer norm.
    """

    name: str
    maps: tuple[str | Map, ...]
    norm: str

    @property
    def output(self) -> str:
        """Path of the map that ends the block."""
        last = self.maps[-1]
        return last.path if isinstance(last, Map) else last


@dataclass(frozen=True)
class Stack:
    """Layers one behind the other, all alike, and what stands before and behind them.

    Attributes:
        path: the module that holds them, below the root; empty for the root itself.
        blocks: the blocks of a layer, in the order of computation.
        embedding: name of the token embedding, which may be that of another stack (tied); empty
            where there is none.
        others: names of the module's other embeddings and norms; those that a model lacks count
            for nothing.
        layers: name of the list of layers.
        entrances: the slots of the module for what methods put in front of the text, of
            ``soft_prompt`` (``methods/prompt.py``) and ``prefix`` (``methods/prefix.py``).
    """

    path: str = ""
    blocks: tuple[Block, ...] = field(default=())
    embedding: str = ""
    others: tuple[str, ...] = ()
    layers: str = "layers"
    entrances: tuple[str, ...] = ()

    def linears(self) -> list[str]:
        """Paths of the linear maps in a layer, the parts of a fused one by their names."""
        found = []
        for path in (path for block in self.blocks for path in block.maps):
            if isinstance(path, Map):
                found += [f"{path.path}.{part}" for part in path.parts] or [path.path]
            else:
                found.append(path)
        return found


@dataclass(frozen=True)
class Family:
    """The stacks of a model.

    Attributes:
        root: dotted path of the module below which names are told: ``layers.0.fc1`` is
            ``<root>.layers.0.fc1``; empty for the model itself.
        stacks: in the order of computation.
        updates_in_one: whether a LoRA is computed with its map in one (``layers/low_rank.py``),
            which rounds otherwise than one after the other.
    """

    root: str
    stacks: tuple[Stack, ...]
    updates_in_one: bool = False

    @property
    def embedding(self) -> str:
        """Name of the first stack's token embedding."""
        return join(self.stacks[0].path, self.stacks[0].embedding)

    def path(self, name: str) -> str:
        """The whole dotted path in the model of what is called ``name`` below the root."""
        return join(self.root, name)

    def stage(self, path: str) -> tuple[str, int | None] | None:
        """The stack (its path) and the number of the layer that the tensor with this dotted path
        is in; None for the number outside the layers, None alone outside the stacks."""
        for stack in self.stacks:
            start = self.path(join(stack.path, stack.layers)) + "."
            if path.startswith(start):
                return stack.path, int(path[len(start) :].split(".")[0])
        for stack in self.stacks:
            start = self.path(stack.path)
            if not start or path.startswith(start + "."):
                return stack.path, None
        return None


def join(path: str, name: str) -> str:
    """``path.name``, or the one that is not empty."""
    return ".".join(part for part in (path, name) if part)
