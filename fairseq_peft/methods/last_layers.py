"""The last k layers train whole; the layers below, and the embeddings, stay.

With ``embeddings`` the token embedding trains, too, and so does the output matrix that is tied to
it: with k = 1 that is the "traditional" fine-tuning of language models.
No tensor is added, so the start is the base model, bit for bit, and the result is a plain
checkpoint.
Trainable: k (4 (C^2 + C) + 2 C F + F + C + 4 C) on RoBERTa; V C more with ``embeddings``.

Where the rest is:
    injection/surgery.py  finds the base's modules and tensors by name
    methods/base.py       what a method is, and which of its functions is called when

Paper: Lee et al. 2019, arXiv:1911.03090.
Shape letters: C model dim, F feed-forward dim, V vocabulary.
"""

from dataclasses import dataclass, field

from fairseq_peft.architectures import Count
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery, targets
from fairseq_peft.methods.base import Method


@dataclass
class LastLayersConfig:
    """Knobs of training the last layers."""

    num_layers: int = field(default=1, metadata={"help": "number k of layers that train (1)"})
    embeddings: bool = field(
        default=False, metadata={"help": "train the token embedding, too (off)"}
    )

    def __post_init__(self):
        if self.num_layers < 1:
            raise InputError(
                f"--last-layers-num-layers {self.num_layers} trains no layer: give an integer of "
                "at least 1, or --peft head_only."
            )


class LastLayers(Method):
    """The last layers of the base train; nothing is added."""

    name = "last_layers"
    summary = "the last layers train whole, those below are frozen"
    paper = "Lee et al. 2019, arXiv:1911.03090"
    mergeable = True
    learning_rates = (1e-4, 3e-4, 1e-3)
    stage = 3
    Config = LastLayersConfig

    def trainable_base_names(self, model, family):
        names = surgery.tensors(model, family)
        total = surgery.num_layers(model, family)
        found = chosen(names, surgery.embeddings(model, family), total, self.config)
        return {family.path(name) for name in found}

    def count_base(self, dims):
        shapes = dims.tensors()
        found = chosen(shapes, dims.embeddings(), dims.num_layers, self.config)
        count = Count()
        count.add_tensors({name: shapes[name] for name in found})
        return count

    def merge(self, model, family):
        """Nothing to do: the trained layers are where a plain checkpoint has them."""


def chosen(names, embeddings, total, config) -> list[str]:
    """Those of ``names`` that are in the last layers of ``total``, or are a token embedding.

    Raises:
        InputError: there are fewer layers.
    """
    if config.num_layers > total:
        raise InputError(
            f"--last-layers-num-layers {config.num_layers}, but the model has {total} layers. Give "
            "fewer, or --peft full to train every tensor."
        )
    tables = [f"{name}.weight" for name in embeddings] if config.embeddings else []
    first = total - config.num_layers

    def trains(name):
        layer = targets.layer_of(name)
        return name in tables or (layer is not None and layer >= first)

    return [name for name in names if trains(name)]


METHOD = LastLayers
