"""What a method is: a config, ``inject``, the tensors it trains, and a merge if it can.

Legend: C model dim, F feed-forward dim.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, fields

import torch
from torch import nn

from fairseq_peft.architectures import Count, Dims
from fairseq_peft.errors import InputError


@dataclass(frozen=True)
class Family:
    """Where a family of models keeps what methods change; names are dotted paths of modules."""

    layers: str
    linears: dict[str, str]  # short name -> path within a layer
    attention_output: str  # short name of the linear map that ends the attention block
    ffn_output: str
    embedder: str  # module with a `soft_prompt` slot and `embed_tokens`


class Method:
    """Base class of all methods; one sub-class in each file of this folder.

    Attributes:
        name: what ``--peft`` takes; the name of the file.
        summary: one line for tables.
        paper: source, or "-".
        mergeable: whether the trained tensors can be folded into a plain checkpoint.
        Config: dataclass of the method's knobs; a field becomes the flag ``--<method>-<field>``,
            unless its metadata names another ("flag").
    """

    name = ""
    summary = ""
    paper = "-"
    mergeable = False

    @dataclass
    class Config:
        pass

    def inject(
        self, model: nn.Module, family: Family, config: Config, generator: torch.Generator
    ) -> None:
        """Change ``model`` in place. New parameters are the method's own; they start as the
        identity."""

    def adopt_base(self, model: nn.Module, family: Family) -> None:
        """Finish an initialisation that depends on the base weights, once they are loaded."""

    def trains(self, name: str) -> bool:
        """Whether the base tensor ``name`` trains (new tensors always do)."""
        return False

    def count(self, dims: Dims, config: Config) -> Count:
        """The parameters that the method adds, as terms."""
        return Count()

    def count_base(self, dims: Dims) -> Count:
        """The parameters of the base that train, as terms."""
        return Count()

    def merge(self, model: nn.Module) -> None:
        """Fold the trained tensors into the base weights, in place, leaving a plain model.

        Raises:
            InputError: the method adds computation that no base weight can hold.
        """
        if not self.mergeable:
            raise InputError(
                f"--peft {self.name} cannot be merged: it adds computation that no weight of the "
                "base model can "
                "hold. Keep the checkpoint as it is, or train one of the methods that merge (lora)."
            )


def flag_name(method: str, field) -> str:
    """The flag of a config field, as an attribute name: ``lora_rank``."""
    return field.metadata.get("flag", f"{method}_{field.name}")


def field_types(config: type) -> dict[str, type]:
    """The types of a config's fields, resolved (annotations are strings in files with postponed
    evaluation)."""
    hints = typing.get_type_hints(config)
    return {field.name: hints[field.name] for field in fields(config)}
