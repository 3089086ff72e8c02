"""Layer norm tuning: gain and bias of every layer norm train, the rest of the base stays.

    y = g * (x - mean(x)) / std(x) + b      g, b (C,) train

The norm of the embeddings is among them. No tensor is added, so the start is the base model, bit
for bit, and the result is a plain checkpoint.
Trainable: (2 L + 1) 2 C on RoBERTa.

Where the rest is:
    injection/surgery.py  finds the base's modules and tensors by name
    methods/base.py       what a method is, and which of its functions is called when

Paper: Qi et al. 2022, arXiv:2211.08682 (LN-tuning, on language encoders). Hugging Face PEFT's
``LNTuning`` trains the same tensors after Zhao et al. 2023, arXiv:2312.11420.
Shape letters: C model dim, L layers.
"""

from fairseq_peft.architectures import Count
from fairseq_peft.injection import surgery
from fairseq_peft.methods.base import Method


class LayerNormTuning(Method):
    """The layer norms of the base train; nothing is added."""

    name = "layer_norm"
    summary = "gain and bias of every layer norm train"
    paper = "Qi et al. 2022, arXiv:2211.08682"
    mergeable = True
    learning_rates = (1e-3, 3e-3, 1e-2)
    stage = 3

    def trainable_base_names(self, model, family):
        shapes = {name: p.shape for name, p in surgery.tensors(model, family).items()}
        return {family.path(name) for name in chosen(shapes)}

    def count_base(self, dims):
        shapes = dims.tensors()
        count = Count()
        count.add_tensors({name: shapes[name] for name in chosen(shapes)})
        return count

    def merge(self, model, family):
        """Nothing to do: the trained norms are where a plain checkpoint has them."""


def chosen(shapes) -> list[str]:
    """The tensors of the norms: a norm is what has a weight of one dimension."""

    def is_norm(part):
        return len(shapes.get(f"{part}.weight", ())) == 1

    return [name for name in shapes if is_norm(name.rpartition(".")[0])]


METHOD = LayerNormTuning
