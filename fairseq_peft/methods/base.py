"""What a method is: a config, ``inject``, the tensors it trains, and a merge if it can.

Legend: C model dim, F feed-forward dim.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass, fields

import torch
from torch import nn

from fairseq_peft.architectures import Count, Dims
from fairseq_peft.errors import InputError
from fairseq_peft.injection.family import Family


class Method:
    """Base class of all methods; one sub-class in each file of this folder. An object is a method
    with its knobs: ``LoRA(LoRAConfig(rank=4))``; ``LoRA()`` has the defaults.

    Attributes:
        config: the knobs, an instance of ``Config``.
        name: what ``--peft`` takes; the name of the file.
        summary: one line for tables.
        paper: source, or "-".
        mergeable: whether the trained tensors can be folded into a plain checkpoint.
        logits_at_start: the logits before the first step, against the base model's: "equal" (bit
            for bit), "nearly" (within rounding) or "changed". A property where a knob decides.
        learning_rates: where to start looking, lowest first.
        stage: what comes first where several methods are combined: 0 replaces linear maps, 1 works
            on their inputs and outputs, 2 adds modules to a layer or to the input, 3 only chooses
            base tensors.
        alone: why it cannot be combined with any other method; empty if it can.
        excludes: other method -> why the two do not go together.
        Config: dataclass of the method's knobs; a field becomes the flag ``--<method>-<field>``,
            unless its metadata names another ("flag").
    """

    name = ""
    summary = ""
    paper = "-"
    mergeable = False
    logits_at_start = "equal"
    learning_rates = (5e-4, 1e-3, 2e-3)
    stage = 2
    alone = ""
    excludes: dict[str, str] = {}

    @dataclass
    class Config:
        pass

    def __init__(self, config: Config | None = None):
        self.config = self.Config() if config is None else config
        for field in fields(self.config):
            value = getattr(self.config, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                flag = "--" + flag_name(self.name, field).replace("_", "-")
                raise InputError(f"{flag} {value} is out of range: give a finite number.")

    def inject(self, model: nn.Module, family: Family, generator: torch.Generator) -> None:
        """Change ``model`` in place. New parameters and buffers are the method's own."""

    def adopt_base(self, model: nn.Module, family: Family) -> None:
        """Finish an initialisation that depends on the base weights: called once, when a run
        starts, after the base is loaded; not for a model that is rebuilt from its own
        checkpoint."""

    def check_base(self, model: nn.Module, base: dict | None) -> None:
        """Raise InputError, before training, where ``adopt_base`` would fail: for what it needs is
        missing (fusion: a folder that is not there), or does not fit the base.

        Args:
            base: the tensors that training starts from, by name; None from scratch.
        """

    def trainable_base_names(self, model: nn.Module, family: Family) -> set[str]:
        """The base tensors that train (what the method adds always does). BitFit:
        ``{"encoder.sentence_encoder.layers.0.fc1.bias", ...}``."""
        return set()

    def frozen_base_names(self, model: nn.Module, family: Family) -> set[str]:
        """The base tensors that must not train, because the method works beside them. LoRA: the
        weights of the adapted maps; ``--peft lora,last_layers`` on one of them is refused."""
        return set()

    def corrected_base_names(self, model: nn.Module, family: Family) -> set[str]:
        """The frozen base tensors that ``adopt_base`` changes, so that an adapter folder has to
        hold them. LoRA with ``--lora-init pissa``: W - s B A of the adapted maps."""
        return set()

    def count(self, dims: Dims) -> Count:
        """The parameters that the method adds, as terms."""
        return Count()

    def count_base(self, dims: Dims) -> Count:
        """The parameters of the base that train, as terms."""
        return Count()

    def buffer_bytes(self, dims: Dims) -> int:
        """The bytes of the buffers that the method adds and a checkpoint holds; they are no
        parameters, and ``count`` leaves them out. AdaLoRA: the importance of each number."""
        return 0

    def penalty(self, model: nn.Module) -> torch.Tensor | None:
        """What the method adds to the mean loss of a training batch: a scalar, or None."""
        return None

    def after_update(self, model: nn.Module, num_updates: int, planned: int) -> None:
        """Called after each optimizer step, gradients still in place; ``num_updates`` counts it,
        ``planned`` is what the whole run will make."""

    def fold(self, model: nn.Module) -> Method:
        """Replace what only training needs by what it computes, in place; the logits stay.

        Returns:
            the method that is left: prefix tuning with ``mlp`` 64 becomes one with ``mlp`` 0.
        """
        return self

    def merge(self, model: nn.Module, family: Family) -> None:
        """Fold the trained tensors into the base weights, in place, leaving a plain model.

        Raises:
            InputError: the method adds computation that no base weight can hold.
        """
        if not self.mergeable:
            raise InputError(
                f"--peft {self.name} cannot be merged: it adds computation that no weight of the "
                "base model can hold. Keep the checkpoint as it is, or train one of the methods "
                "that merge (fairseq-peft methods lists them)."
            )


def flag_name(method: str, field) -> str:
    """The flag of a config field, as an attribute name: ``lora_rank``."""
    return field.metadata.get("flag", f"{method}_{field.name}")


def field_types(config: type) -> dict[str, type]:
    """The types of a config's fields, resolved (annotations are strings in files with postponed
    evaluation)."""
    hints = typing.get_type_hints(config)
    return {field.name: hints[field.name] for field in fields(config)}
