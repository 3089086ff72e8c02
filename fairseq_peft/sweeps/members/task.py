"""The task of a member: the plugin's own, whose steps ask the group for the model's scores.

fairseq calls ``train_step`` and ``valid_step`` for each batch, and ``begin_epoch`` when the base is
loaded. There a criterion is handed a model that, when it is called, asks and waits; everything else
of the run is fairseq's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fairseq_peft.injection import surgery
from fairseq_peft.sharing.rows import Stream
from fairseq_peft.sweeps.members.turns import Turn
from fairseq_peft.tasks.sentence_classification import SentenceClassificationTask


@dataclass
class Forward:
    """A request for class scores.

    Attributes:
        model, tokens, head: whose scores, of what (B, T), by which head.
        start: where the member's random numbers stand.
        trains: whether there will be a backward pass.
        stream: where they stand when the pass is done.
        scores: the answer, (B, classes). In training it is a leaf; its gradient is handed on to
            ``graph``.
        joint: whether ``graph`` is part of one that other members have a part in.
    """

    model: nn.Module
    tokens: torch.Tensor
    head: str
    start: Stream
    trains: bool
    stream: Stream | None = None
    scores: torch.Tensor | None = None
    graph: torch.Tensor | None = None
    joint: bool = False

    def answer(self, scores: torch.Tensor, stream: Stream, joint: bool) -> None:
        self.stream = stream
        self.joint = joint
        self.graph = scores if self.trains else None
        self.scores = scores.detach().requires_grad_(self.trains)


class Backward:
    """A request to hand the gradient of the last scores on to the parameters."""


class Asking:
    """A model as a criterion sees it: called, it asks for its scores."""

    def __init__(self, model: nn.Module, turn: Turn):
        self.module = model
        self._turn = turn

    def __getattr__(self, name):
        return getattr(self.module, name)

    def __call__(self, src_tokens, classification_head_name=None, **unused):
        model = surgery.unwrap(self.module)
        trains = model.training and torch.is_grad_enabled()
        stream = Stream(src_tokens.device)
        request = Forward(model, src_tokens, classification_head_name, stream, trains)
        self._turn.ask(request)
        with request.stream:  # what draws next goes on from here
            pass
        return request.scores, {}


class MemberTask(SentenceClassificationTask):
    """The task of one member; a group makes a class of its own, which knows it.

    Attributes:
        group: the group (``group.Group``).
        turn: the turn that this task runs in.
    """

    group = None
    turn = None

    @classmethod
    def setup_task(cls, cfg, **kwargs):
        task = super().setup_task(cfg, **kwargs)
        task.turn = cls.group.now
        return task

    def begin_epoch(self, epoch, model):
        if self.run.recorder is None:  # the first epoch of this process
            self.group.share(surgery.unwrap(model))
            # A reader of the seconds must know that they are shares of a common process.
            self.run.described["members"] = len(self.group.turns)
            self.run.clock = self.turn.perf_counter
        super().begin_epoch(epoch, model)

    def train_step(self, sample, model, *args, **kwargs):
        result = super().train_step(sample, Asking(model, self.turn), *args, **kwargs)
        self.turn.ask(Backward())
        return result

    def valid_step(self, sample, model, criterion):
        return super().valid_step(sample, Asking(model, self.turn), criterion)
