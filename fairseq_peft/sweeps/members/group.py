"""Many runs of fairseq-train as one process on one base.

Each run is fairseq's own ``main`` with its own flags, in a thread that has its turn (``turns.py``).
Where its criterion calls the model, it hands its batch in and pauses; once all have, their class
scores are computed, together or one after the other, and each goes on with its own loss, clipping,
optimizer, schedule, validation, log and checkpoint. Its random numbers are those it would have in a
process of its own.

What is computed together: on a GPU every pass, because a small model leaves it idle. On a CPU the
products of one batch fill it and copies cost time, so only those passes in which members would
compute the same thing in the first layer at least: the same batch, in validation, or with one seed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from fairseq.trainer import Trainer
from fairseq_cli import train

from fairseq_peft.errors import InputError
from fairseq_peft.sweeps.members.forward import JointForward
from fairseq_peft.sweeps.members.rows import Stream
from fairseq_peft.sweeps.members.turns import Turn

#: Tokens of one joint pass, at most: they are in memory at once.
MAX_TOKENS = 65536
TOGETHER = ("auto", "always", "never")


@dataclass
class Forward:
    """A request for class scores.

    ``scores`` (B, classes) is the answer. In training it is a leaf; ``graph`` is what its gradient
    is handed on to.
    """

    model: torch.nn.Module
    tokens: torch.Tensor
    head: str
    stream: Stream
    trains: bool
    scores: torch.Tensor = None
    graph: torch.Tensor = None


class Backward:
    """A request to hand the gradient of the last scores on to the parameters."""


class Group:
    """Runs that train together.

    Args:
        together: one of ``TOGETHER``.
    """

    def __init__(self, together: str = "auto"):
        self.together = together
        self.turns = []
        self.now = None
        self._base = {}
        self._joint = {}

    def add(self, cfg, argv: list[str], log) -> Turn:
        """A member: fairseq's config, the words it was parsed from, and a text file for what it
        logs."""
        turn = Turn(lambda: train.main(cfg), argv, log)
        self.turns.append(turn)
        return turn

    def run(self) -> None:
        """Run all to their end.

        Raises:
            InputError: the members have no frozen tensor in common.
        """
        trainer = train.Trainer
        train.Trainer = lambda *args: MemberTrainer(self, *args)
        try:
            for turn in self.turns:
                self._resume(turn)
            while any(turn.request for turn in self.turns):
                for wave in self._waves([turn for turn in self.turns if turn.request]):
                    self._step(wave)
        finally:
            train.Trainer = trainer

    def share(self, model) -> None:
        """Let the frozen tensors of ``model`` that equal those of the first member be the same
        memory."""
        common = 0
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                continue
            first = self._base.setdefault(name, parameter.data)
            if first.shape == parameter.shape and torch.equal(first, parameter.data):
                parameter.data = first
                common += ".layers." in name
        if not common:
            raise InputError(
                f"--peft {model.setting.name}: no frozen layer of this member is as in the first "
                "one, so there is no base to share. Give members of one base and a method that "
                "leaves it frozen, or run them with fairseq-train."
            )

    def _resume(self, turn, reply=None):
        self.now = turn
        turn.resume(reply)

    def _step(self, wave):
        """A pass forward, and backward for those that train."""
        requests = [turn.request for turn in wave]
        sizes = [request.tokens.numel() for request in requests]
        self._timed(wave, sizes, self._forward, requests)
        for turn, request in zip(wave, requests):
            self._resume(turn, request)
        training = [
            (turn, size, request)
            for turn, size, request in zip(wave, sizes, requests)
            if isinstance(turn.request, Backward)
        ]
        if training:
            turns, sizes, requests = zip(*training)
            graphs = [request.graph for request in requests]
            gradients = [request.scores.grad for request in requests]
            self._timed(turns, sizes, torch.autograd.backward, graphs, gradients)
            for request in requests:
                request.graph = request.scores = None
            for turn in turns:
                self._resume(turn)

    def _timed(self, turns, sizes, function, *args):
        """Call ``function`` and charge its time to ``turns``, in the ratio of ``sizes``."""
        start = time.perf_counter()
        function(*args)
        seconds = time.perf_counter() - start
        for turn, size in zip(turns, sizes):
            turn.charge(seconds * size / sum(sizes))

    def _forward(self, requests):
        with torch.set_grad_enabled(requests[0].trains):
            if len(requests) == 1:
                (request,) = requests
                with request.stream:
                    scores = [_own_scores(request)]
            else:
                streams = [request.stream for request in requests]
                joint = self._joined(requests)
                scores = joint([r.tokens for r in requests], streams, requests[0].head)
                for request, stream in zip(requests, streams):
                    request.stream = stream
        for request, score in zip(requests, scores):
            request.graph = score if request.trains else None
            request.scores = score.detach().requires_grad_(request.trains)

    def _joined(self, requests) -> JointForward:
        key = tuple(id(request.model) for request in requests)
        if key not in self._joint:
            self._joint[key] = JointForward([request.model for request in requests])
        return self._joint[key]

    def _waves(self, turns):
        """The members that wait, in groups for one pass each."""
        kinds = {}
        for turn in turns:
            request = turn.request
            # Where heads read <s> alone, the last layer computes, and draws, less.
            first = request.model.classification_heads[request.head].pooler == "first"
            kind = (request.trains, request.model.training, request.head, first)
            kinds.setdefault(kind, []).append(turn)
        for kind in kinds.values():
            if self.together == "never":
                yield from ([turn] for turn in kind)
            elif self.together == "always" or kind[0].request.tokens.device.type != "cpu":
                yield from _limited(kind)
            else:
                for same in _same_input(kind):
                    alike = len(same) > 1 and self._joined([t.request for t in same]).begins_alike
                    yield from [same] if alike else ([turn] for turn in same)


class MemberTrainer(Trainer):
    """fairseq's trainer, whose model computes with the group's."""

    def __init__(self, group: Group, cfg, task, model, criterion, quantizer=None):
        super().__init__(cfg, task, model, criterion, quantizer)
        self._group = group
        turn, step = group.now, task.train_step

        def forward(src_tokens, classification_head_name=None, **unused):
            stream = Stream(src_tokens.device)
            trains = model.training and torch.is_grad_enabled()
            request = Forward(model, src_tokens, classification_head_name, stream, trains)
            done = turn.ask(request)
            with done.stream:  # what draws next goes on from here
                pass
            return done.scores, {}

        def train_step(*args, **kwargs):
            result = step(*args, **kwargs)
            turn.ask(Backward())
            return result

        model.forward = forward
        task.train_step = train_step
        # A reader of the seconds must know that they are shares of a common process.
        task.run.described["members"] = len(group.turns)
        task.run.clock = turn.perf_counter

    def load_checkpoint(self, *args, **kwargs):
        extra_state = super().load_checkpoint(*args, **kwargs)
        self._group.share(self._model)
        return extra_state


def _own_scores(request):
    """The class scores by the model's own pass."""
    scores, _ = type(request.model).forward(
        request.model, request.tokens, True, classification_head_name=request.head
    )
    return scores


def _limited(turns):
    """Consecutive members with at most ``MAX_TOKENS`` tokens together, or one member."""
    wave, total = [], 0
    for turn in turns:
        size = turn.request.tokens.numel()
        if wave and total + size > MAX_TOKENS:
            yield wave
            wave, total = [], 0
        wave.append(turn)
        total += size
    yield wave


def _same_input(turns):
    """Members whose batch is the same, and, in training, their random numbers, too."""
    groups = []
    for turn in turns:
        new = turn.request
        for group in groups:
            old = group[0].request
            same = old.tokens.shape == new.tokens.shape and torch.equal(old.tokens, new.tokens)
            if same and (not new.model.training or old.stream.same(new.stream)):
                group.append(turn)
                break
        else:
            groups.append([turn])
    return groups
