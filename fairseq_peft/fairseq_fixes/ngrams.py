"""``--no-repeat-ngram-size``, which does nothing in fairseq but where its CUDA extension was built.

Its other way looks at the last tokens of the buffer, and those are padding until it is full.
"""

from __future__ import annotations

import math

import torch
from fairseq.ngram_repeat_block import NGramRepeatBlock


def install() -> None:
    """Let it see what is written so far; once."""
    NGramRepeatBlock._no_repeat_ngram = _no_repeat_ngram


def _no_repeat_ngram(self, tokens, lprobs, bsz: int, beam_size: int, step: int) -> torch.Tensor:
    """Forbid what would write n tokens in a row once more.

    Args:
        tokens: (B * beam, T) what is written, up to ``step``, then padding. The first only starts
            it, and is no part of what may not come twice.
        lprobs: (B * beam, words) changed in place.
    """
    size = self.no_repeat_ngram_size
    if step < size:
        return lprobs
    written = tokens[:, 1 : step + 1]
    before = written.unfold(1, size, 1)  # (B * beam, places, n)
    last = written[:, step - size + 1 :]
    rows, places = (before[:, :, :-1] == last.unsqueeze(1)).all(-1).nonzero(as_tuple=True)
    lprobs[rows, before[rows, places, -1]] = -math.inf
    return lprobs
