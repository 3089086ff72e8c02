"""Tensors of a method by our names and by those of a folder of Hugging Face PEFT.

    encoder.sentence_encoder.layers.0.self_attn.q_proj.lora_A
    base_model.model.roberta.encoder.layer.0.attention.self.query.lora_A.weight

    decoder.layers.0.encoder_attn.q_proj.lora_A
    base_model.model.model.decoder.layers.0.encoder_attn.q_proj.lora_A.weight

    hf.transformer.h.0.attn.c_attn.lora_A
    base_model.model.transformer.h.0.attn.c_attn.lora_A.weight

The adapter's name ("default") and "modules_to_save" are not in the files of PEFT. Shapes are the
same but for IA3's vectors: (out, 1) behind a map, (1, in) before it.
"""

from __future__ import annotations

from typing import NamedTuple

from fairseq_peft.hf import peft_beside
from fairseq_peft.methods.ia3 import IA3
from fairseq_peft.models.roberta import HEADS

#: What a method adds to a module -> its name there.
LOW_RANK = {
    "lora_A": "lora_A.weight",
    "lora_B": "lora_B.weight",
    "lora_magnitude": "lora_magnitude_vector",
}
EMBEDDING = {"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B"}
#: Ends of the names of what stands before the text, or before keys and values.
VECTORS = (".soft_prompt.embeddings", ".prefix.embeddings")
PROMPT = "prompt_embeddings"


class Theirs(NamedTuple):
    """A tensor in a folder of PEFT."""

    name: str
    shape: tuple[int, ...]


def table(model, head: str | None) -> dict[str, Theirs]:
    """Our name -> theirs, for all that ``model`` and its classification head, if it has one, have
    beside the base; what PEFT computes from the base, as PiSSA's corrected weights, is not in it.

    Raises:
        KeyError: a tensor has no place in PEFT's format.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    to_hf = peft_beside.of(model).to_hf
    own = model.own_names() - model.setting.corrected_base_names(model, model.family)
    adapted = {name.rpartition(".")[0] for name in own if name.endswith(".lora_A")}
    # Methods that only change the input leave the model itself as it is.
    only_input = any(name.endswith(VECTORS) for name in own)
    prefix = "base_model." if only_input else "base_model.model."
    found = {}
    for name in sorted(own):
        module, _, kind = name.rpartition(".")
        shape = shapes[name]
        if name.endswith(VECTORS):
            theirs = PROMPT
        elif name.startswith(HEADS):
            theirs = prefix + to_hf(name, head)
        elif module.endswith(".ia3") and kind == "scale":
            part = model.get_submodule(module)
            assert isinstance(part, IA3)
            shape = (1, *shape) if part.on_input else (*shape, 1)
            theirs = f"{prefix}{to_hf(module.rpartition('.')[0])}.ia3_l"
        elif module in adapted and name in model.added:
            kinds = EMBEDDING if module.endswith("." + model.family.embedding) else LOW_RANK
            theirs = f"{prefix}{to_hf(module)}.{kinds[kind]}"
        elif module in adapted:
            theirs = f"{prefix}{to_hf(module)}.base_layer.{kind}"
        else:
            theirs = prefix + to_hf(name)
        found[name] = Theirs(theirs, shape)
    return found
