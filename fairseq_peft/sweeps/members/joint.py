"""The joint pass: the class scores of several members, each for its own batch, from one model.

The model is a copy of the first member's, around the same tensors, with a switch wherever the
members differ (``sharing/``): what is frozen in all of them runs once over all rows, and what a
member trains, or draws at random, runs on its own rows. So whatever a method does takes part, and
the pass is that of ``models/encoder.py``, whose forward exists once.

Members with the same batch, and in training the same random numbers, own the same rows as long as
they would compute the same thing: up to the first layer in which they differ.

Shape letters: B batch, T tokens, C model dim, M members.
"""

from __future__ import annotations

import torch
from torch import nn

from fairseq_peft.layers.dropout import Dropout
from fairseq_peft.models import heads
from fairseq_peft.models.roberta import FAMILY
from fairseq_peft.sharing.differences import attentions, copied, differences
from fairseq_peft.sharing.rows import Piece, Stream, join
from fairseq_peft.sharing.switched import Switched

ROOT = FAMILY.root
LAYERS = f"{ROOT}.layers."


def share(model: nn.Module, base: dict[str, torch.Tensor]) -> int:
    """Let frozen tensors of ``model`` that equal those of ``base`` be the same ones; those that
    ``base`` has not are added to it.

    Returns:
        how many tensors of its layers are shared now.
    """
    common = 0
    for path, module in model.named_modules():
        for own in (module._parameters, module._buffers):
            for kind, tensor in own.items():
                name = f"{path}.{kind}"
                if tensor is None or tensor.requires_grad or name in model.added:
                    continue
                first = base.setdefault(name, tensor)
                if first is tensor or (first.shape == tensor.shape and torch.equal(first, tensor)):
                    own[kind] = first
                    common += name.startswith(LAYERS)
    return common


class Joint:
    """Models of one architecture that share their frozen tensors (``share``), as one.

    Args:
        models: the members'.
        training: whether they train.
        at_once: as ``sharing.rows.Batch`` has it.

    Attributes:
        possible: whether a switch fits wherever they differ; else each runs by itself.
        num_common: layers from the first on that are the same for all; -1 if what is before the
            layers is not.
    """

    def __init__(self, models: list[nn.Module], training: bool, at_once: bool | None = None):
        self.models = models
        self.switched = Switched(copied(models[0]).eval(), ROOT)
        self.switched.batch.at_once = at_once
        differ = {
            added_around(models[0], path)
            for model in models[1:]
            for path in differences(models[0], model, ROOT)
        }
        # What is added and not called is known to the member's own modules alone.
        differ = {p for p in differ if self.switched.has_room([p]) or not is_added(models[0], p)}
        drawing = drawing_modules(models) if training else set()
        differ |= {path for path in drawing if not _same_rate(models, path)}
        places = outermost(differ | drawing)
        self.num_common = _first_layer(differ, len(self.switched.encoder.layers))
        reserved = set(map(positions_before, models))
        self.possible = self.switched.has_room(places) and len(reserved) == 1
        if not self.possible:
            return
        for number, model in enumerate(models):
            self.switched.add(number, {path: module_at(model, path) for path in places})
        self.switched.reserve(reserved.pop())
        if not training:  # the copy is in eval mode in any case
            self.switched.encoder.kept = models[0].get_submodule(ROOT).kept
        layers = self.switched.encoder.layers
        for layer in layers[self.num_common if self.num_common >= 0 else len(layers) :]:
            layer.register_forward_pre_hook(self._apart)

    def __call__(self, batches: list[torch.Tensor], streams: list[Stream], head: str):
        """Class scores (B, classes) for each member.

        Args:
            batches: the members' src_tokens, (B, T) each.
            streams: their random numbers, which move on as far as they would in a pass of their
                own; not used in eval mode.
            head: name of the classification head; all read ``<s>`` alone, or none does.
        """
        model = self.models[0]
        (first,) = {m.classification_heads[head].pooler == "first" for m in self.models}
        padding = model.encoder.dictionary.pad()
        self.batches, self.streams = batches, streams if model.training else None
        self.leaders, self.rows = self._leaders(), None
        leaders = sorted(set(self.leaders))
        self._set_batch(leaders)
        tokens = join([batches[member] for member in leaders], value=padding)
        x, _ = self.switched.model.encoder(tokens, features_only=True, first_only=first)
        own = dict(zip((p.name for p in self.switched.batch), self.switched.batch.cut(x)))
        x = [own[m if m in own else leader] for m, leader in enumerate(self.leaders)]
        if self.rows is None:
            self._part_streams()
        scores = []
        for m, model in enumerate(self.models):
            given = (model.classification_heads[head], x[m], batches[m].ne(padding))
            if self.streams is None:
                scores.append(heads.scores(*given))
            else:
                with self.streams[m]:
                    scores.append(heads.scores(*given))
        return scores

    def _leaders(self) -> list[int]:
        """For each member the first one with the same rows and random numbers, maybe itself."""
        if self.num_common < 0:
            return list(range(len(self.models)))
        found, batches = [], _on_host(self.batches)
        for m, tokens in enumerate(batches):
            same = (
                other
                for other in set(found)
                if tokens.shape == batches[other].shape
                and torch.equal(tokens, batches[other])
                and (self.streams is None or self.streams[m].same(self.streams[other]))
            )
            found.append(min(same, default=m))
        return found

    def _set_batch(self, members):
        """The pieces of these members, one below the other."""
        self.switched.batch.clear()
        start = 0
        for m in members:
            num_rows, length = self.batches[m].shape
            stream = self.streams and self.streams[m]
            piece = Piece(m, slice(start, start + num_rows), length, stream)
            self.switched.batch.append(piece)
            start += num_rows

    def _apart(self, layer, inputs):
        """Before each layer in which members may differ: rows of its own for each, where several
        owned the same until now."""
        x, keep, *rest = inputs
        if self.leaders == list(range(len(self.models))):
            return inputs
        if self.rows is None:
            owners = {piece.name: piece for piece in self.switched.batch}
            rows = [torch.arange(p.rows.start, p.rows.stop) for p in map(owners.get, self.leaders)]
            self.rows = torch.cat(rows).to(x.device)
            self._part_streams()
            self._set_batch(range(len(self.models)))
            x = x[self.rows]
        return (x, None if keep is None else keep[self.rows], *rest)

    def _part_streams(self):
        for m, leader in enumerate(self.leaders if self.streams else ()):
            if m != leader:
                self.streams[m] = self.streams[leader].fork()


def positions_before(model: nn.Module) -> int:
    """The positions that a prefix takes from the text; in one pass they are the same for all."""
    prefix = model.get_submodule(ROOT).prefix
    return 0 if prefix is None else prefix.num_reserved


def module_at(model: nn.Module, path: str) -> nn.Module | None:
    """The module at a path; None where there is none."""
    parent, _, child = path.rpartition(".")
    return getattr(model.get_submodule(parent), child)


def is_added(model: nn.Module, path: str) -> bool:
    """Whether the module at a path holds nothing of the base."""
    base = model.state_dict().keys() - model.added
    return not any(name.startswith(f"{path}.") for name in base)


def added_around(model: nn.Module, path: str) -> str:
    """The path of the outermost module around the one at ``path`` that holds nothing of the base:
    a module that a method added is one member's own as a whole."""
    while is_added(model, parent := path.rpartition(".")[0]):
        path = parent
    return path


def drawing_modules(models) -> set[str]:
    """The paths of what draws at random for some member, of what all models have."""
    common = set.intersection(*(set(dict(model.named_modules())) for model in models))
    found = set()
    for model in models:
        attends = attentions(model, ROOT)
        found |= {path for path, attend in attends.items() if attend.dropout_module.p > 0}
        for path, module in model.get_submodule(ROOT).named_modules(prefix=ROOT):
            owner = path.rpartition(".")[0]
            within = owner in attends or f"{owner}.attend" in attends
            if isinstance(module, (Dropout, nn.Dropout)) and module.p > 0 and not within:
                found.add(path)
    return found & common


def _same_rate(models, path) -> bool:
    modules = [model.get_submodule(path) for model in models]
    return len({getattr(module, "dropout_module", module).p for module in modules}) == 1


def outermost(paths: set[str]) -> set[str]:
    """Those that are in no other."""
    return {
        path for path in paths if not any(path.startswith(f"{other}.") for other in paths - {path})
    }


def _on_host(batches: list[torch.Tensor]) -> list[torch.Tensor]:
    """The members' tokens on the CPU, by one copy: each comparison on a GPU would wait for it."""
    if batches[0].device.type == "cpu":
        return batches
    parts = torch.cat([tokens.reshape(-1) for tokens in batches]).cpu()
    parts = parts.split([tokens.numel() for tokens in batches])
    return [part.view(tokens.shape) for part, tokens in zip(parts, batches)]


def _first_layer(paths, num_layers) -> int:
    """The number of the first layer that one of ``paths`` is in; -1 if one is outside of them."""
    if not all(path.startswith(LAYERS) for path in paths):
        return -1
    numbers = [int(path[len(LAYERS) :].split(".")[0]) for path in paths]
    return min(numbers, default=num_layers)
