"""Head only: the encoder is frozen, the classification head trains. The floor that every method
must beat."""

from fairseq_peft.methods.base import Method


class HeadOnly(Method):
    """No base tensor trains; nothing is added."""

    name = "head_only"
    summary = "the encoder is frozen, only the head trains"
    mergeable = True


METHOD = HeadOnly()
