"""One run from its knobs to its result: planned, locked, trained, and summed up.

knobs -> command line of fairseq-train -> plan -> [the folder is ours] -> is there such a run?
      -> plan.json -> fairseq-train -> result.json
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.report.result import in_words, keep_predictions, summarise, write_result
from fairseq_peft.report.tensorboard import write_hparams
from fairseq_peft.runs import lock, plan
from fairseq_peft.sweeps.knobs import ENDLESS, Knobs, command

logger = logging.getLogger(__name__)

#: What fairseq logs where it ends a run itself.
ENDS = re.compile(
    r"Stopping training due to (?P<limit>[a-z_]+: .+)|(?P<early>early stop since .+)|"
    r"stopping training because (?P<rate>current learning rate .+)"
)


def dry_run(knobs: Knobs) -> list[str]:
    """The commands of a run, ready to paste."""
    if (knobs.folder / "result.json").exists():
        return [f"{knobs.folder} is done."]
    found, _ = plan.parse(command(knobs)[1:])
    me = [sys.executable, "-m"]
    result = ["fairseq_peft.cli", "result", str(knobs.folder), "--require-epochs"]
    return [
        shlex.join([*me, "fairseq_cli.train", *command(knobs)]),
        shlex.join([*me, *result, str(found.max_epoch)]),
    ]


def run(knobs: Knobs, change: str | None = None, wait: bool = False, step: str = "all") -> str:
    """Train a run, or go on with it, to its result.

    Args:
        change: what to do with a run of another plan that is there: ``redo`` throws it away,
            ``extend`` goes on with it for more epochs; None refuses.
        wait: wait while another process has the run, instead of giving up.
        step: ``plan``: make the plan alone; ``finish``: take the result of a run that another
            process has trained (``sweep-members``).

    Returns:
        What has become of it, as a sentence; of a plan, the words of fairseq-train to run.

    Raises:
        InputError: the run cannot be, or has failed.
    """
    folder = knobs.folder
    words = command(knobs)
    now = plan.make(words)
    lock.take(folder, lock.WHOLE_RUN, wait)
    try:
        lock.take(folder, lock.TRAINING, wait)
        done = adopt(folder, now, change)
        lock.release(folder)
        if done:
            return f"{folder} is done."
        if step == "plan":
            return shlex.join(words)
        if step == "all":
            train(knobs, words, now)
        lock.take(folder, lock.TRAINING, wait)
        if step == "finish" and why_ended(folder, now) is None:
            raise InputError(failure(folder / "train.log"))
        return finish(knobs, now)
    finally:
        lock.release(folder)
        lock.release(folder, lock.WHOLE_RUN)


def adopt(folder: Path, now: plan.Plan, change: str | None = None) -> bool:
    """Make the run in ``folder`` one of the plan ``now``, and write plan.json.

    Returns:
        Whether it is done.

    Raises:
        InputError: the folder holds a run of another plan.
    """
    done = (folder / "result.json").exists()
    before = plan.read(folder)
    differ = plan.differences(before, now) if before else {}
    if differ and change == "redo":
        for path in folder.iterdir():
            if path.name not in (lock.TRAINING, lock.WHOLE_RUN):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        done = False
    elif differ and change == "extend":
        check_extension(folder, before, now, differ, done)
        if done and _ended_by(folder).startswith("early stop"):
            plan.write(folder, now)  # with more epochs it would have ended there, too
        elif done:
            (folder / "result.json").unlink()
            done = False
    elif differ:
        raise InputError(
            f"{folder} holds another run: {plan.sentence(differ)}. Give --redo to throw it away, "
            "--extend to go on for more epochs, or another place (RUNS, LABEL) for this one."
        )
    if before and before.versions != now.versions:
        logger.warning(f"{folder} was begun with {before.versions}; this is {now.versions}")
    if not done:
        folder.mkdir(parents=True, exist_ok=True)
        plan.write(folder, now)
    return done


def check_extension(folder: Path, before, now, differ: dict, done: bool) -> None:
    """Raise InputError unless going on from ``before`` is exactly what ``now`` would have been."""
    others = {name: pair for name, pair in differ.items() if name != "max_epoch"}
    why = None
    if now.scheduler not in ENDLESS:
        why = (
            f"its learning rate has been planned for {before.total_updates} updates "
            f"({now.scheduler}), and for {now.total_updates} it would have been another from the "
            "beginning; only --lr-scheduler fixed or inverse_sqrt can go on"
        )
    elif others:
        why = plan.sentence(others)
        if "warmup_updates" in others:
            why += "; --warmup 0 is the same for any number of epochs"
    elif now.max_epoch < before.max_epoch:
        why = f"it has {before.max_epoch} epochs, and {now.max_epoch} are fewer"
    elif _plans_updates(now):
        why = f"{now.peft or now.arch} plans its ranks for all updates of a run"
    elif done and _ended_by(folder).startswith("early stop"):
        return
    elif done and not _ended_by(folder).startswith("max_epoch"):
        why = f"what ended it is not --max-epoch, but {_ended_by(folder)}"
    elif done and not (folder / "checkpoint_last.pt").exists():
        why = f"{folder / 'checkpoint_last.pt'} is not there any more"
    if why:
        raise InputError(f"{folder} cannot be extended: {why}. Give --redo to begin it afresh.")


def _ended_by(folder):
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result.get("ended_by", "unknown")


def _plans_updates(found):
    from fairseq_peft import methods
    from fairseq_peft.methods.base import Method

    names = [name for name in methods.available() if found.arch.endswith(f"_{name}")]
    peft = found.peft or max(names, key=len, default="full")
    return any(cls.after_update is not Method.after_update for cls in methods.split(peft))


def train(knobs: Knobs, words: list[str], now: plan.Plan) -> None:
    """Train in a process of its own, or as a child of the worker, with its output in train.log.

    Raises:
        InputError: it failed.
    """
    log = knobs.folder / "train.log"
    start = log.stat().st_size if log.exists() else 0
    logger.info(f"{knobs.folder}: {now.total_updates or 'no fixed number of'} updates; log: {log}")
    way = ["fairseq_cli.train"]
    if knobs.worker:
        way = ["fairseq_peft.cli", "worker", knobs.worker, "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(knobs.threads)}
    with open(log, "a", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *way, *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        epochs = Epochs(knobs.folder / "metrics.jsonl", now.max_epoch)
        try:
            while True:
                try:
                    status = process.wait(timeout=0.3)
                    break
                except subprocess.TimeoutExpired:
                    epochs.tell()
        except BaseException:  # such as Ctrl-C
            process.terminate()
            process.wait()
            raise
        epochs.tell()
    if status:
        raise InputError(failure(log, start))


class Epochs:
    """Tells of each epoch as its line of metrics.jsonl comes."""

    def __init__(self, path: Path, max_epoch: int):
        self.path = path
        self.max_epoch = max_epoch
        self.place = path.stat().st_size if path.exists() else 0

    def tell(self) -> None:
        if not self.path.exists():
            return
        with open(self.path, encoding="utf-8") as file:
            file.seek(self.place)
            text = file.read()
        whole, _, _ = text.rpartition("\n")
        self.place += len(whole.encode()) + bool(whole)
        for line in whole.splitlines():
            epoch = json.loads(line)
            scores = ", ".join(
                f"{name} {100 * subset['accuracy']:.2f} %"
                for name, subset in epoch["subsets"].items()
            )
            logger.info(
                f"epoch {epoch['epoch']} of {self.max_epoch or '?'}: {scores}, train loss "
                f"{epoch['train']['loss']:.4f}, {epoch['train']['seconds']:.1f} s"
            )


def failure(log: Path, start: int = 0) -> str:
    """Why a run failed: the one sentence of train.log behind the byte ``start``, or else its
    end."""
    lines = []
    if log.exists():
        with open(log, encoding="utf-8", errors="replace") as file:
            file.seek(start)
            lines = [line for line in file.read().splitlines() if line.strip()]
    told = [line.split("error: ", 1)[1] for line in lines if re.match(r"[\w. -]+: error: ", line)]
    if told:
        return f"{told[-1]} (log: {log})"
    # Cut: fairseq logs its whole configuration as one line of thousands of characters.
    end = "\n".join(line[:400] for line in lines[-20:] if "Warning" not in line)
    return f"training failed; its log is {log}. It ends:\n{end}"


def why_ended(folder: Path, now: plan.Plan) -> str | None:
    """What ended the training in ``folder``; None if it has not come to an end."""
    ends = []
    if (folder / "train.log").exists():
        text = (folder / "train.log").read_text(encoding="utf-8", errors="replace")
        ends = [next(filter(None, found.groups())) for found in ENDS.finditer(text)]
    if ends:
        return ends[-1].strip()
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if lines and now.max_epoch and json.loads(lines[-1])["epoch"] >= now.max_epoch:
        return f"max_epoch: {now.max_epoch}"
    return None


def finish(knobs: Knobs, now: plan.Plan) -> str:
    """Write result.json of a run that is trained, and remove what only training needs.

    Raises:
        InputError: it has not come to its end.
    """
    folder = knobs.folder
    reason = why_ended(folder, now)
    result = summarise(folder, 0 if reason else max(now.max_epoch, 1))
    result["ended_by"] = reason
    write_hparams(folder, result)
    keep_predictions(folder, result)
    path = write_result(folder, result)  # last, because it says that everything is there
    if now.scheduler not in ENDLESS:  # else it may be extended
        (folder / "checkpoint_last.pt").unlink(missing_ok=True)
    if knobs.keep == "none":
        (folder / "checkpoint_best.pt").unlink(missing_ok=True)
    return f"{path}: {in_words(result)}; ended by {result['ended_by']}"
