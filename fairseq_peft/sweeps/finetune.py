"""One run from its knobs to its result: planned, locked, trained, and summed up.

knobs -> command line of fairseq-train -> plan -> [the folder is ours] -> is there such a run?
      -> plan.json -> fairseq-train -> result.json
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.files import whole
from fairseq_peft.report.result import conclude, in_words, summarise
from fairseq_peft.report.runs import read_json
from fairseq_peft.runs import lock, plan
from fairseq_peft.runs import log as run_log
from fairseq_peft.sweeps import check
from fairseq_peft.sweeps.epochs import Epochs
from fairseq_peft.sweeps.knobs import ENDLESS, Knobs, batches, command

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


def run(knobs: Knobs, change: str | None = None, wait: bool = False) -> str:
    """Train a run, or go on with it, to its result.

    Args:
        change: what to do with a run of another plan that is there: ``redo`` throws it away,
            ``extend`` goes on with it for more epochs; None refuses.
        wait: wait while another process has the run, instead of giving up.

    Returns:
        What has become of it, as a sentence.

    Raises:
        InputError: the run cannot be, or has failed.
    """
    words = command(knobs)
    now = plan.make(words)
    with owned(knobs.folder, wait):
        if change == "redo":
            at = f"{knobs.folder}.redone"
            check_redo(
                knobs.folder,
                now,
                lambda: check.start([*words, "--save-dir", at], with_data=True),
            )
        if begin(knobs.folder, now, change, wait):
            return f"{knobs.folder} is done."
        train(knobs, words, now)
        return finish(knobs, now, wait)


@contextlib.contextmanager
def owned(folder: Path, wait: bool = False) -> Iterator[None]:
    """The run in ``folder`` is this process's to look after, from its first command to its result.

    Raises:
        Busy: it is another's.
    """
    lock.take(folder, lock.WHOLE_RUN, wait)
    try:
        yield
    finally:
        lock.release(folder)
        lock.release(folder, lock.WHOLE_RUN)


def begin(folder: Path, now: plan.Plan, change: str | None, wait: bool = False) -> bool:
    """Make the run in ``folder`` one of the plan ``now``, for the process that will train it.

    Returns:
        Whether it is done.

    Raises:
        InputError: the folder holds a run of another plan, or another process trains there.
    """
    lock.take(folder, lock.TRAINING, wait)
    try:
        return adopt(folder, now, change)
    finally:
        lock.release(folder)


def is_done(folder: Path, now: plan.Plan, change: str | None = None, extends: bool = True) -> bool:
    """Whether ``folder`` holds a run of the plan ``now`` that is done.

    Args:
        change: as ``run`` takes it.
        extends: whether runs of this kind can be extended.

    Raises:
        InputError: it holds a run of another plan, and ``change`` does not make it this one.
    """
    done = (folder / "result.json").exists()
    before = plan.of_begun(folder)
    differ = plan.differences(before, now) if before else {}
    if differ and change == "extend":
        check_extension(folder, before, now, differ, done)
    elif differ and change != "redo":
        ways = "--extend to go on for more epochs, or" if extends else "or"
        raise InputError(
            f"{folder} holds another run: {plan.sentence(differ)}. Give --redo to throw it away, "
            f"{ways} another place (--runs or --label; RUNS, LABEL) for this one."
        )
    # What patience ended would have ended there with more epochs, too.
    return done and (not differ or (change == "extend" and _stopped_early(folder)))


def check_redo(folder: Path, now: plan.Plan, start: Callable[[], object]) -> None:
    """Raise InputError where a run of another plan would go for one that cannot start.

    Args:
        start: raises InputError where the new run cannot.
    """
    before = plan.of_begun(folder)
    if not before or not plan.differences(before, now):
        return
    try:
        start()
    except InputError as error:
        raise InputError(f"{folder} is as it was, for the new run cannot start: {error}") from error


def adopt(folder: Path, now: plan.Plan, change: str | None = None, extends: bool = True) -> bool:
    """Make the run in ``folder`` one of the plan ``now``, and write plan.json; the arguments are
    those of ``is_done``.

    Returns:
        Whether it is done.

    Raises:
        InputError: the folder holds a run of another plan.
    """
    before = plan.of_begun(folder)
    differ = before and plan.differences(before, now)
    if is_done(folder, now, change, extends):
        if differ:
            plan.write(folder, now)
        return True
    if differ:
        if change == "redo":
            clear(folder)
        else:
            (folder / "result.json").unlink(missing_ok=True)
    if before and before.versions != now.versions:
        logger.warning(f"{folder} was begun with {before.versions}; this is {now.versions}")
    folder.mkdir(parents=True, exist_ok=True)
    plan.write(folder, now)
    return False


def clear(folder: Path) -> None:
    """Remove everything of a run but its locks."""
    for path in folder.iterdir():
        if path.name not in (lock.TRAINING, lock.WHOLE_RUN):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def copy(source: Path, target: Path) -> None:
    """Copy a run that is done to ``target``, an empty folder that this process owns; it is done
    there once everything is."""
    for path in source.iterdir():
        if path.name in (lock.TRAINING, lock.WHOLE_RUN, "result.json"):
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copy2(path, target)
    with whole(target / "result.json") as temporary:
        shutil.copy2(source / "result.json", temporary)


#: Signals that a child is deaf to (``deaf_children``).
_not_for_children = ()


@contextlib.contextmanager
def deaf_children(*numbers: int) -> Iterator[None]:
    """What is started in this block ignores these signals: a queue that means this process sends
    them to its children, too."""
    global _not_for_children
    before, _not_for_children = _not_for_children, numbers
    try:
        yield
    finally:
        _not_for_children = before


def _ignore_signals():
    for number in _not_for_children:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """SIGTERM is an exception, as Ctrl-C is: what was started is ended, too."""

    def end(number, frame):
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    elif done and _stopped_early(folder):
        return
    elif done and not _ended_by(folder).startswith("max_epoch"):
        why = f"what ended it is not --max-epoch, but {_ended_by(folder)}"
    elif done and not (folder / "checkpoint_last.pt").exists():
        why = f"{folder / 'checkpoint_last.pt'} is not there any more"
    if why:
        raise InputError(f"{folder} cannot be extended: {why}. Give --redo to begin it afresh.")


def _ended_by(folder):
    return str(read_json(folder / "result.json").get("ended_by") or "unknown")


def _stopped_early(folder):
    return _ended_by(folder).startswith("early stop")


def _plans_updates(found):
    from fairseq_peft import methods
    from fairseq_peft.methods.base import Method

    names = [name for name in methods.available() if found.arch.endswith(f"_{name}")]
    peft = found.peft or max(names, key=len, default="full")
    return any(cls.after_update is not Method.after_update for cls in methods.split(peft))


def train(knobs: Knobs, words: list[str], now: plan.Plan) -> None:
    """Train in a process of its own, or as a child of the worker, with its output in train.log;
    tells of each epoch.

    Raises:
        InputError: it failed.
    """
    log = knobs.folder / "train.log"
    start = log.stat().st_size if log.exists() else 0
    updates = now.total_updates or plan.num_updates(now, batches(knobs, now))
    logger.info(f"{knobs.folder}: {updates or 'no fixed number of'} updates; log: {log}")
    epochs = Epochs(knobs.folder, now.max_epoch)
    with open(log, "a", encoding="utf-8") as output:
        status = process([*way(knobs.worker, "train"), *words], output, knobs.threads, epochs.tell)
    epochs.tell()
    if status:
        raise InputError(failure(log, start))


def way(worker: str | None, program: str) -> list[str]:
    """How to start ``train`` or ``sweep-members``: as a child of the worker, if there is one."""
    if worker:
        return ["fairseq_peft.cli", "worker", worker, program]
    return ["fairseq_peft.train"] if program == "train" else ["fairseq_peft.cli", program]


def process(words: list[str], output, threads: int, meanwhile, text: str = "") -> int:
    """Run ``python -m words...`` to its end; returns its exit status.

    Args:
        output: the file of what it prints.
        threads: its CPU threads.
        meanwhile: called now and then.
        text: what it reads.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", *words],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        # The log says what ended a run: see ``why_ended``.
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "LOGLEVEL": "INFO"},
        text=True,
        preexec_fn=_ignore_signals if _not_for_children else None,
    )
    try:
        with contextlib.suppress(BrokenPipeError):  # it has ended: its status says so
            child.stdin.write(text)
            child.stdin.close()
        while True:
            try:
                return child.wait(timeout=0.3)
            except subprocess.TimeoutExpired:
                meanwhile()
    except BaseException:  # such as Ctrl-C
        # Nothing that is killed is half-written, either.
        child.kill() if _not_for_children else child.terminate()
        child.wait()
        raise


def failure(log: Path, start: int = 0) -> str:
    """Why a run failed: the one sentence of train.log behind the byte ``start``, or else its
    end."""
    lines = []
    if log.exists():
        with open(log, encoding="utf-8", errors="replace") as file:
            file.seek(start)
            lines = [line for line in file.read().splitlines() if line.strip()]
    told = logged_error(lines)
    if told:
        return f"{told} (log: {log})"
    # Cut: fairseq logs its whole configuration as one line of thousands of characters.
    end = "\n".join(line[:400] for line in lines[-20:] if "Warning" not in line)
    return f"training failed; its log is {log}. It ends:\n{end}"


def logged_error(lines: list[str]) -> str | None:
    """The last error of a log's lines: a sentence for users, else that of a traceback; or None."""
    told = [line.split("error: ", 1)[1] for line in lines if re.match(r"[\w. -]+: error: ", line)]
    told = told or [line for line in lines if re.match(r"[A-Za-z_.]+(Error|Exception)\b", line)]
    return told[-1][:400] if told else None


def why_ended(folder: Path, now: plan.Plan) -> str | None:
    """What ended the training in ``folder``; None if it has not come to an end."""
    ends = []
    if (folder / "train.log").exists():
        text = (folder / "train.log").read_text(encoding="utf-8", errors="replace")
        ends = [next(filter(None, found.groups())) for found in ENDS.finditer(text)]
    if ends:
        return ends[-1].strip()
    lines = run_log.read_lines(str(folder), 2**62)
    if lines and now.max_epoch and lines[-1]["epoch"] >= now.max_epoch:
        return f"max_epoch: {now.max_epoch}"
    return None


def finish(knobs: Knobs, now: plan.Plan, wait: bool = False) -> str:
    """Write result.json of a run that is trained, and remove what only training needs.

    Raises:
        InputError: it has not come to its end, or another process trains there.
    """
    folder = knobs.folder
    lock.take(folder, lock.TRAINING, wait)
    reason = why_ended(folder, now)
    result = summarise(folder, 0 if reason else max(now.max_epoch, 1))
    result["ended_by"] = reason
    path = conclude(folder, result)
    if now.scheduler not in ENDLESS:  # else it may be extended
        (folder / "checkpoint_last.pt").unlink(missing_ok=True)
    if knobs.keep == "none":
        (folder / "checkpoint_best.pt").unlink(missing_ok=True)
    return f"{path}: {in_words(result)}; ended by {result['ended_by']}"
