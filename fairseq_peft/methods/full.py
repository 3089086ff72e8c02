"""Full fine-tuning: every tensor of the encoder trains. The baseline."""

from fairseq_peft.architectures import Count, encoder_rest, matrices
from fairseq_peft.methods.base import Method


class Full(Method):
    """Every base tensor trains; nothing is added."""

    name = "full"
    summary = "every tensor of the model trains"
    mergeable = True

    def trains(self, name):
        return True

    def count_base(self, dims):
        return Count(matrices(dims).terms + encoder_rest(dims).terms)


METHOD = Full()
