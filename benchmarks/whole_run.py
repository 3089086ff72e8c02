"""Where the seconds of one ``finetune`` go, from Enter to result.json: fairseq-train's own command,
with a clock around its steps.

python benchmarks/whole_run.py --data data-bin/cls-books --base model.pt --methods full,lora

Processor seconds of one thread, which other programs on the machine hardly change. ``--flags`` are
those of fairseq-train, such as ``--flags="--keep-features 0"``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time

import fairseq_peft  # noqa: F401  before fairseq, as in finetune

REST = "everything else"
PHASES = (
    *("imports", "launch: model, checks, data", "training", "evaluation", "checkpoints, adapter"),
    *("result.json", REST),
)
LR = {"full": "1e-4", "lora": "1e-3", "head_only": "3e-3", "prompt": "1e-2", "last_layers": "3e-4"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    text = parser.add_argument
    text("--data", required=True, metavar="DIR", help="folder that prepare-data made")
    text("--base", required=True, metavar="FILE", help="checkpoint to start from")
    text("--methods", default="full,lora,head_only,prompt", help="with commas between")
    text("--epochs", type=int, default=3, help="passes over train (3)")
    text("--precision", default="fp32", help="as finetune's (fp32)")
    text("--flags", default="", help="more flags of fairseq-train")
    text("--run", metavar="FOLDER", help=argparse.SUPPRESS)  # the one run, in its own process
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.run:
        return one_run(args)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in args.methods.split(","):
            words = [*sys.argv[1:], "--methods", method, "--run", folder]
            done = subprocess.run(
                [sys.executable, __file__, *words],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            found[method] = json.loads(done.stdout.splitlines()[-1])
    print("| | " + " | ".join(found) + " |\n|---|" + "---:|" * len(found))
    for phase in (*PHASES, "all"):
        cells = [sum(s.values()) if phase == "all" else s.get(phase, 0) for s in found.values()]
        print(f"| {phase} | " + " | ".join(f"{seconds:.1f}" for seconds in cells) + " |")


class Clock:
    """Processor seconds by phase; the time in a phase within another is the inner one's."""

    def __init__(self):
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._running, self._last = [REST], 0.0

    def _count(self):
        now = time.process_time()
        self.seconds[self._running[-1]] += now - self._last
        self._last = now

    @contextlib.contextmanager
    def phase(self, name: str):
        self._count()
        self._running.append(name)
        try:
            yield
        finally:
            self._count()
            self._running.pop()

    def watch(self, owner, name: str, phase: str) -> None:
        """Count what the function ``name`` of ``owner`` takes as ``phase``."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def watched(*args, **kwargs):
            with self.phase(phase):
                return function(*args, **kwargs)

        setattr(owner, name, watched)


def one_run(args) -> None:
    """Train one method in this process; prints phase -> processor seconds, as JSON."""
    clock = Clock()
    with clock.phase("imports"):
        from fairseq import checkpoint_utils
        from fairseq.trainer import Trainer
        from fairseq_cli import train

        from fairseq_peft.commands import finetune as verb
        from fairseq_peft.sweeps import arguments, finetune
        from fairseq_peft.sweeps.knobs import command
        from fairseq_peft.tasks import sentence_classification as task
        from fairseq_peft.tasks.best_adapter import BestAdapter

    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    words = ["--data", args.data, "--base", args.base, "--runs", args.run, "--threads", "1"]
    words += ["--method", args.methods, "--lr", LR.get(args.methods, "1e-3")]
    words += ["--epochs", str(args.epochs), "--precision", args.precision, "--"]
    given = parser.parse_args([*words, *args.flags.split()])
    knobs = arguments.knobs(
        given, method=given.method, label=given.method, base=given.base, seed=1, lr=given.lr,
        threads=1, worker=None,
    )  # fmt: skip
    clock.watch(task, "launch", "launch: model, checks, data")
    clock.watch(Trainer, "train_step", "training")
    clock.watch(Trainer, "valid_step", "evaluation")
    clock.watch(checkpoint_utils, "save_checkpoint", "checkpoints, adapter")
    clock.watch(BestAdapter, "offer", "checkpoints, adapter")
    now = finetune.plan.make(command(knobs))
    with finetune.owned(knobs.folder):
        finetune.begin(knobs.folder, now, None)
        sys.argv[1:] = command(knobs)
        with contextlib.redirect_stdout(sys.stderr):
            train.cli_main()
        with clock.phase("result.json"):
            finetune.finish(knobs, now)
    with clock.phase(REST):
        pass
    sys.stdout.write(json.dumps(clock.seconds) + "\n")


if __name__ == "__main__":
    main()
