"""Head only: the encoder is frozen, the classification head trains. The floor that every method
must beat.

``methods/base.py`` says what a method is, and which of its functions is called when.
"""

from fairseq_peft.methods.base import Method


class HeadOnly(Method):
    """No base tensor trains; nothing is added."""

    name = "head_only"
    summary = "the encoder is frozen, only the head trains"
    mergeable = True
    learning_rates = (1e-3, 3e-3, 1e-2)
    stage = 3
    alone = "it trains nothing but the head, which every method trains"


METHOD = HeadOnly
