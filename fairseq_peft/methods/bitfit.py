"""BitFit: the biases train, every other tensor of the base stays.

    y = W x + b      W frozen, b trains; so does the bias of each layer norm

No tensor is added, so the start is the base model, bit for bit, and the result is a plain
checkpoint. Trainable: L (7 C + F) + C on RoBERTa (a layer has 4 C in attention, F + C in the
feed-forward block and 2 C in its norms; the embedding's norm has C); with ``query_middle_mlp``
L (C + F).

The bias of k_proj is among them, as in the paper's code, and is of no use: it adds the same number
to all of a query's scores, and softmax cancels that. Its gradient is rounding noise.

Where the rest is:
    injection/surgery.py  finds the base's modules and tensors by name
    methods/base.py       what a method is, and which of its functions is called when

Paper: Ben Zaken et al. 2022, arXiv:2106.10199; ``query_middle_mlp`` is its subset of the "query"
and the "middle-of-MLP" biases (b_q and b_m2), half of the numbers at almost the same accuracy.
Shape letters: C model dim, F feed-forward dim, L layers.
"""

from dataclasses import dataclass, field

from fairseq_peft.architectures import Count, Undefined
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery
from fairseq_peft.methods.base import Method

#: Scope -> the ends of the names of its tensors.
SCOPES = {"all": (".bias",), "query_middle_mlp": (".q_proj.bias", ".fc1.bias")}


@dataclass
class BitFitConfig:
    """Knobs of BitFit."""

    scope: str = field(
        default="all",
        metadata={
            "help": "which biases: all, or query_middle_mlp, the paper's subset of q_proj and fc1 "
            "(all)"
        },
    )

    def __post_init__(self):
        if self.scope not in SCOPES:
            raise InputError(
                f"--bitfit-scope {self.scope!r} is unknown: give one of {', '.join(SCOPES)}."
            )


class BitFit(Method):
    """The biases of the base train; nothing is added."""

    name = "bitfit"
    summary = "the biases of the base model train"
    paper = "Ben Zaken et al. 2022, arXiv:2106.10199"
    mergeable = True
    learning_rates = (5e-4, 1e-3, 4e-3)
    stage = 3
    Config = BitFitConfig

    def trainable_base_names(self, model, family):
        names = chosen(surgery.tensors(model, family), self.config)
        return {family.path(name) for name in names}

    def count_base(self, dims):
        shapes = dims.tensors()
        count = Count()
        count.add_tensors({name: shapes[name] for name in chosen(shapes, self.config)})
        return count

    def merge(self, model, family):
        """Nothing to do: the trained biases are where a plain checkpoint has them."""


def chosen(names, config) -> list[str]:
    """The biases among ``names``.

    Raises:
        Undefined: there are none.
    """
    found = [name for name in names if name.endswith(SCOPES[config.scope])]
    if not found:
        raise Undefined(
            f"--bitfit-scope {config.scope}: this model has no biases by these names. Choose "
            "another scope or method."
        )
    return found


METHOD = BitFit
