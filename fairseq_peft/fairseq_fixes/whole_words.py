"""``--mask-whole-words`` of fairseq's masked_lm task, which ends in an AttributeError without this.

The task asks its ``args`` for the tokenizer, and has none since it is configured by hydra. What
begins a word can be read off the dictionary, where it is one of sentencepiece.
"""

from __future__ import annotations

import torch
from fairseq.tasks import masked_lm

from fairseq_peft.errors import InputError

#: Stands for the space before a word in sentencepiece's pieces.
SPACE = "\u2581"


def word_starts(args, dictionary) -> torch.Tensor:
    """1 for each row of ``dictionary`` that begins a word, (V,) uint8: pieces after a space, and
    what is no piece of text (specials, rows that pad the dictionary, ``<mask>``).

    Args:
        args: not looked at; fairseq's own function of this kind finds its tokenizer there.

    Raises:
        InputError: no row is a piece after a space.
    """
    symbols = dictionary.symbols
    if not any(symbol.startswith(SPACE) for symbol in symbols):
        raise InputError(
            f"--mask-whole-words needs to see where words begin, and none of the {len(symbols):,} "
            f"entries of the dictionary begins with {SPACE!r}, sentencepiece's mark for it. Leave "
            "the flag out, or use sentencepiece's pieces (scripts/pretrain.sh)."
        )
    special = set(symbols[: dictionary.nspecial]) | {"<mask>"}
    starts = [s.startswith((SPACE, "madeupword")) or s in special for s in symbols]
    return torch.tensor(starts, dtype=torch.uint8)


def install() -> None:
    """Let fairseq's task use ``word_starts``."""
    masked_lm.get_whole_word_mask = word_starts
    if not hasattr(masked_lm.MaskedLMTask, "args"):
        masked_lm.MaskedLMTask.args = None
