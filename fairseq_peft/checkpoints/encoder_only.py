"""The encoder of an encoder-decoder of fairseq's (BART, BARThez) as a RoBERTa without LM head.

Both are fairseq's ``TransformerEncoder``: the tensors have other names, and where the flags scale
the token embeddings by sqrt(C), that is folded into them.
"""

from __future__ import annotations

import math

from fairseq_peft.checkpoints.file import namespace, told
from fairseq_peft.errors import InputError

#: Tensors of an encoder -> of a RoBERTa's.
OLD, NEW = "encoder.", "encoder.sentence_encoder."
WORDS = "embed_tokens.weight"
#: Flags that say what the encoder computes, beside its sizes, which its tensors show.
KEPT = ("encoder_attention_heads", "activation_fn", "dropout", "attention_dropout")


def encoder_of(state: dict, path: str) -> dict:
    """The checkpoint ``state`` of ``path`` with its encoder alone, as a RoBERTa's.

    Raises:
        InputError: it is no encoder-decoder, or its encoder computes what a RoBERTa does not.
    """
    flags, weights = told(state), state["model"]
    if OLD + WORDS not in weights or not any(name.startswith("decoder.") for name in weights):
        raise InputError(
            f"{path} is no encoder-decoder of fairseq's: it has no {OLD}{WORDS} beside a decoder. "
            "Leave --encoder out."
        )
    if f"{OLD}embed_positions.weight" not in weights:
        raise InputError(
            f"{path} has no {OLD}embed_positions.weight: its positions are computed, and a "
            "RoBERTa's are learned. Give another checkpoint."
        )
    own = {
        NEW + name[len(OLD) :]: tensor
        for name, tensor in weights.items()
        if name.startswith(OLD) and not name.endswith("version")
    }
    if not flags.get("no_scale_embedding"):
        words = own[NEW + WORDS]
        own[NEW + WORDS] = words * math.sqrt(words.shape[1])
    kept = {name: flags[name] for name in KEPT if name in flags}
    # Where flags are silent, fairseq's transformer computes relu, and a RoBERTa gelu.
    kept["activation_fn"] = flags.get("activation_fn") or "relu"
    return {**state, "args": namespace(kept), "cfg": None, "model": own, "task_state": {}}
