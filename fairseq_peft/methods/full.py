"""Full fine-tuning: every tensor of the encoder trains. The baseline.

``methods/base.py`` says what a method is, and which of its functions is called when.
"""

from fairseq_peft.methods.base import Method


class Full(Method):
    """Every base tensor trains; nothing is added."""

    name = "full"
    summary = "every tensor of the model trains"
    mergeable = True
    learning_rates = (5e-5, 1e-4, 2e-4)
    stage = 3
    alone = "it trains every tensor already"

    def trainable_base_names(self, model, family):
        return {name for name, _ in model.named_parameters()}

    def count_base(self, dims):
        return dims.body()


METHOD = Full
