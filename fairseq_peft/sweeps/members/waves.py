"""Which members compute together.

On a GPU every pass is joint, because a small model leaves it idle. On a CPU the products of one
batch fill it and copies cost time, so only those passes are in which members would compute the same
thing in the first layer at least: the same batch, in validation, or with one seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from fairseq_peft.layers.settings import settings
from fairseq_peft.sweeps.members.joint import ROOT, positions_before
from fairseq_peft.sweeps.members.turns import Turn

#: Tokens of one joint pass, at most: they are in memory at once.
MAX_TOKENS = 65536
TOGETHER = ("auto", "always", "never")


def waves(turns: list[Turn], together: str, joint_of: Callable) -> Iterator[tuple]:
    """(members, their joint pass or None) for each pass of the members that wait for scores.

    Args:
        together: one of ``TOGETHER``.
        joint_of: requests -> their joint pass, None where there can be none.
    """
    kinds = {}
    for turn in turns:
        kinds.setdefault(_kind(turn.request), []).append(turn)
    for kind in kinds.values():
        if together == "never":
            found = [[turn] for turn in kind]
        elif together == "always" or kind[0].request.tokens.device.type != "cpu":
            found = _limited(kind)
        else:
            found = _same_input(kind)
        for wave in found:
            joint = joint_of([turn.request for turn in wave]) if len(wave) > 1 else None
            if joint and together == "auto" and wave[0].request.tokens.device.type == "cpu":
                joint = joint if joint.num_common > 0 else None
            if joint:
                yield wave, joint
            else:
                yield from (([turn], None) for turn in wave)


def _kind(request) -> tuple:
    """What is the same for all members of one pass."""
    # Where heads read <s> alone, the last layer computes, and draws, less.
    first = request.model.classification_heads[request.head].pooler == "first"
    model = request.model
    of_all = settings(model.get_submodule(ROOT))  # the precision among them
    return request.trains, model.training, request.head, first, positions_before(model), of_all


def _limited(turns):
    """Consecutive members with at most ``MAX_TOKENS`` tokens together, with padding, or one
    member."""
    wave, num_rows, longest = [], 0, 0
    for turn in turns:
        rows, length = turn.request.tokens.shape
        if wave and (num_rows + rows) * max(longest, length) > MAX_TOKENS:
            yield wave
            wave, num_rows, longest = [], 0, 0
        wave.append(turn)
        num_rows, longest = num_rows + rows, max(longest, length)
    yield wave


def _same_input(turns):
    """Members whose batch is the same, and, in training, their random numbers, too."""
    groups = []
    for turn in turns:
        new = turn.request
        for group in groups:
            old = group[0].request
            same = old.tokens.shape == new.tokens.shape and torch.equal(old.tokens, new.tokens)
            if same and (not new.model.training or old.start.same(new.start)):
                group.append(turn)
                break
        else:
            groups.append([turn])
    return groups
