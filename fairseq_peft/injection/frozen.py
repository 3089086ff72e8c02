"""The frozen part of a model: its dropout, and the proof that it stays as it was.

A stage is a layer, or the embeddings before the layers; it is frozen if no base tensor in it
trains, whatever methods have added to it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from fairseq_peft.digests import combine, digest
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery
from fairseq_peft.injection.family import join

CHOICES = ("on", "off")


def stages(model: nn.Module, family, added) -> list[tuple[str, int | None]]:
    """The frozen stages: the stack's path, and the number of a layer, or None for what is outside
    its layers (the embeddings).

    Args:
        added: names of the tensors that methods added.
    """
    training = {
        family.stage(name)
        for name, parameter in model.named_parameters(remove_duplicate=False)  # shared ones, too
        if parameter.requires_grad and name not in added
    }
    every = [(stack.path, None) for stack in family.stacks]
    every += [(place.stack.path, place.number) for place in surgery.places(model, family)]
    return [stage for stage in every if stage not in training]


def set_dropout(model: nn.Module, family, added, choice: str) -> str:
    """Carry out ``--frozen-dropout``: with ``off`` the frozen stages train without dropout.

    What methods add keeps its own dropout, and so does the head.

    Returns:
        one line for the log; empty if no stage is frozen.

    Raises:
        InputError: ``choice`` is neither on nor off, or off would be ignored.
    """
    if choice not in CHOICES:
        raise InputError(f"--frozen-dropout {choice!r} is unknown: give on or off.")
    found = stages(model, family, added)
    if not found:
        if choice == "off":
            raise InputError(
                "--frozen-dropout off would be ignored: every layer has base tensors that train. "
                "Leave it out, or turn dropout off with --dropout 0 --attention-dropout 0."
            )
        return ""
    if choice == "off":
        for stage in found:
            for module in _dropouts(model, family, stage):
                module.p = 0.0
    parts = []
    for stack in family.stacks:
        numbers = [number for path, number in found if path == stack.path]
        layers = ", ".join(str(number) for number in numbers if number is not None)
        names = ["embeddings"] * (None in numbers) + [f"layers {layers}"] * bool(layers)
        parts += [f"{stack.path} {name}".strip() for name in names]
    kept = "keep their dropout" if choice == "on" else "train without dropout"
    return f"--frozen-dropout {choice}: the frozen {' and '.join(parts)} {kept}"


def _dropouts(model, family, stage):
    """The base's dropout modules of a stage; fairseq ends all their names with dropout_module, and
    a family whose models do otherwise finds its own."""
    if hasattr(family, "dropouts"):
        return family.dropouts(model, stage)
    path, number = stage
    if number is None:
        return [model.get_submodule(family.path(join(path, "dropout_module")))]
    (layer,) = [
        place.layer
        for place in surgery.places(model, family)
        if (place.stack.path, place.number) == stage
    ]
    return [module for name, module in layer.named_modules() if name.endswith("dropout_module")]


class Guard:
    """SHA-256 of every frozen tensor, taken when it is made, and compared by ``check``.

    Attributes:
        sha256: of all of them together.
        num_tensors: how many they are.
    """

    def __init__(self, model: nn.Module):
        self._digests = {name: digest(name, tensor) for name, tensor in _frozen(model)}
        self.sha256 = combine(self._digests)
        self.num_tensors = len(self._digests)

    def __str__(self) -> str:
        return f"frozen: {self.num_tensors} tensors, sha256 {self.sha256[:12]}"

    def check(self, model: nn.Module) -> None:
        """Raise RuntimeError if a tensor that was frozen is not as it was."""
        now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        changed = [
            name
            for name, before in self._digests.items()
            if name not in now or digest(name, now[name]) != before
        ]
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise RuntimeError(
                f"{len(changed)} of {self.num_tensors} frozen tensors have changed in training: "
                f"{', '.join(changed[:3])}{more}. Only what trains may: look for code that writes "
                "to weights (an optimizer of your own, a hook, an average of weights), take it "
                "out, and start again from the base in another --save-dir."
            )


def _frozen(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of all that neither trains nor belongs to a method; tied ones once."""
    kept = model.state_dict()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            yield name, parameter
    for name, buffer in model.named_buffers():
        if name in kept and name not in model.added:
            yield name, buffer
