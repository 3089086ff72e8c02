"""Many runs of fairseq-train as one process on one base.

Each run is fairseq's own ``main`` with its own flags, in a thread that has its turn (``turns.py``).
Where its criterion calls the model, it hands its batch in and pauses (``task.py``); once all have,
their class scores are computed, together or one after the other (``waves.py``, ``passes.py``), and
each goes on with its own loss, clipping, optimizer, schedule, validation, log and checkpoint. Its
random numbers are those it would have in a process of its own.
"""

from __future__ import annotations

import time

from fairseq.tasks import TASK_REGISTRY
from fairseq_cli import train

from fairseq_peft.errors import InputError
from fairseq_peft.sweeps.members import joint, passes
from fairseq_peft.sweeps.members.task import Backward, MemberTask
from fairseq_peft.sweeps.members.turns import Turn
from fairseq_peft.sweeps.members.waves import waves

TASK = "sentence_classification"


class Group:
    """Runs that train together.

    Args:
        together: one of ``waves.TOGETHER``.

    Attributes:
        turns: the members' turns.
        now: the one that runs, or ran last.
    """

    def __init__(self, together: str = "auto"):
        self.together = together
        self.turns = []
        self.now = None
        self._base = {}
        self._joint = {}
        self._kept = None

    def add(self, cfg, argv: list[str], log) -> Turn:
        """A member: fairseq's config, the words it was parsed from, and a text file for what it
        logs."""
        turn = Turn(lambda: train.main(cfg), argv, log)
        self.turns.append(turn)
        return turn

    def run(self) -> None:
        """Run all to their end. A member that fails ends by itself; ``Turn.error`` says why."""
        usual = TASK_REGISTRY[TASK]  # where fairseq's main looks for the class of --task
        TASK_REGISTRY[TASK] = type("MemberTask", (MemberTask,), {"group": self})
        try:
            for turn in self.turns:
                self._resume(turn)
            while waiting := [turn for turn in self.turns if turn.request]:
                for wave, joint_pass in list(waves(waiting, self.together, self._joint_of)):
                    self._step(wave, joint_pass)
        finally:
            TASK_REGISTRY[TASK] = usual

    def share(self, model) -> None:
        """Let the frozen tensors of ``model`` that equal those of the first member be the same.

        Raises:
            InputError: none of its layers' are.
        """
        if not joint.share(model, self._base):
            raise InputError(
                f"--peft {model.setting.name}: no frozen layer of this member is as in the first "
                "one, so there is no base to share. Give members of one base and a method that "
                "leaves it frozen, or run them with fairseq-train."
            )
        # What is kept of one is kept of all whose layers below are the same, in one memory.
        encoder = model.encoder.sentence_encoder
        if encoder.kept:
            self._kept = self._kept or encoder.kept
            encoder.kept = self._kept

    def _resume(self, turn, error=None):
        self.now = turn
        turn.resume(error)

    def _step(self, wave, joint_pass):
        """A pass forward, and backward for those that train."""
        requests = {turn: turn.request for turn in wave}
        self._timed(requests, passes.forward, list(requests.values()), joint_pass)
        training = {t: r for t, r in requests.items() if isinstance(t.request, Backward)}
        if training:
            self._timed(training, passes.backward, list(training.values()))
        for request in requests.values():
            request.graph = request.scores = None

    def _timed(self, requests, function, *args):
        """Call ``function``, charge its time to the turns in the ratio of their tokens, and let
        each go on, with the error that it gave for it if there is one."""
        start = time.perf_counter()
        errors = function(*args)
        seconds = time.perf_counter() - start
        sizes = [request.tokens.numel() for request in requests.values()]
        for turn, size in zip(requests, sizes):
            turn.charge(seconds * size / sum(sizes))
        for turn, error in zip(requests, errors):
            self._resume(turn, error)

    def _joint_of(self, requests):
        """The joint pass of these members; None where there can be none."""
        models = [request.model for request in requests]
        key = (models[0].training, *map(id, models))
        if key not in self._joint:
            try:
                self._joint[key] = joint.Joint(models, models[0].training)
            except Exception as error:  # no reason to end them: each can run by itself
                passes.warn(error, len(models))
                self._joint[key] = None
        found = self._joint[key]
        return found if found and found.possible else None
