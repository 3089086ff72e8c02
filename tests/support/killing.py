"""Runs that are killed: launches of ``fairseq-train`` by fork, and what each leaves on the disk.

For a process that has imported fairseq (tests/support/fork_server.py); a launch costs no imports.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from functools import cache, partial
from pathlib import Path

import torch
import torch.utils.tensorboard  # noqa: F401
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq_cli import train
from runs import without_clocks
from workers import alive, session

import fairseq_peft.plugin  # noqa: F401
from fairseq_peft import cli
from fairseq_peft.checkpoints import slim
from fairseq_peft.errors import InputError
from fairseq_peft.runs.log import read_lines

LAST = "checkpoint_last.pt"


@cache
def composed(words):
    """The configuration of ``fairseq-train WORDS``: half a run's time, so made before the fork."""
    sys.argv = ["fairseq-train", *words]
    args = options.parse_args_and_arch(options.get_training_parser())
    return convert_namespace_to_omegaconf(args)


def launch(words, log, sabotage=None):
    """Start a run in a child; returns its process id."""
    cfg = composed(tuple(words))
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 1)
        os.dup2(1, 2)
        sys.argv = ["fairseq-train", *words]
        if sabotage:
            sabotage()
        distributed_utils.call_main(cfg, train.main)
        code = 0
    finally:
        os._exit(code)


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def finish(words, log):
    assert wait(launch(words, log)) == 0, Path(log).read_text()[-3000:]


def content(folder):
    """Weights, optimizer state and epoch of checkpoint_last.pt; None where there is none yet."""
    if not (folder / LAST).exists():
        return None
    state = slim.read(str(folder / LAST))
    weights = dict(sorted(state["model"].items()))
    flat, _ = torch.utils._pytree.tree_flatten([weights, state["last_optimizer_state"]])
    return flat, state["extra_state"]["train_iterator"]["epoch"] - 1


def same(one, other):
    equal = [
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one[0], other[0])
    ]
    return one[1] == other[1] and len(one[0]) == len(other[0]) and all(equal)


def opens(folder):
    """Open every checkpoint there is; the finished epochs, by checkpoint_last.pt and metrics."""
    for path in folder.glob("checkpoint*.pt"):
        slim.read(str(path))
    found = content(folder)
    log = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return found[1] if found else 0, max([line["epoch"] for line in lines], default=0)


def random_moments(words, epochs, number, seed):
    """Kill runs at random moments until it was ``number`` times, each time going on from there.

    A run that ends before its moment is compared with the one that nobody disturbed, and the next
    one starts afresh. Returns what happened, for the test to look at.
    """
    rng = random.Random(seed)
    words = [*words, "--max-epoch", str(epochs)]
    folder, whole = Path("run"), Path("whole")
    begin = time.monotonic()
    finish([*words, "--save-dir", "whole"], "log")
    seconds = time.monotonic() - begin
    expected = content(whole)
    kills, ends, steps, epoch = 0, 0, [], 0
    while kills < number or epoch < expected[1]:
        child = launch([*words, "--save-dir", "run"], "log")
        if kills < number:
            time.sleep(rng.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
        code = wait(child)
        if code == -signal.SIGKILL:
            kills += 1
        else:
            assert code == 0, Path("log").read_text()[-3000:]
        before, (epoch, logged) = epoch, opens(folder)
        steps.append([before, epoch, logged])
        if code == 0:
            assert same(content(folder), expected), steps
            ends += 1
            leftovers = [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]
            assert not leftovers, leftovers
            if kills < number:
                shutil.rmtree(folder)
                epoch = 0
    return {"kills": kills, "ends": ends, "steps": steps, "seconds": seconds}


def start_sweep(words, runs, log):
    """A sweep in a session of its own, with a worker whose forks train; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 1)
        os.dup2(1, 2)
        code = cli.main(["sweep", *words, "--runs", runs])
    finally:
        os._exit(code)


def results(runs):
    """Folder -> what its run has left, but times; the time of its file."""
    found = {}
    for path in sorted(Path(".").glob(f"{runs}*/**/result.json")):
        result = without_clocks(json.loads(path.read_text()))
        del result["command"], result["train_seconds"]
        name = str(path.parent.relative_to("."))[len(runs) :]
        # an epoch that was killed before its checkpoint has a line, too, and is run again
        lines = without_clocks(read_lines(str(path.parent), 2**53))
        found[name] = [result, lines], path.stat().st_mtime_ns
    return found


def sweep_moments(words, number, seed):
    """Kill processes of a sweep at random moments until it was ``number`` times: the sweep, its
    worker, who looks after a run, who trains, or all at once. Each time the same line goes on.

    A sweep that comes to its end has to equal the one that nobody disturbed, and what is done is
    never run again. Returns what was killed, and how many sweeps came to their end.
    """
    rng = random.Random(seed)
    begin = time.monotonic()
    assert wait(start_sweep(words, "whole", "log")) == 0, Path("log").read_text()[-3000:]
    seconds = time.monotonic() - begin
    expected = {name: told for name, (told, _) in results("whole").items()}
    killed, ends, done = [], 0, {}
    while len(killed) < number or not ends:
        child = start_sweep(words, "run", "log")
        while len(killed) < number and alive(child):  # it goes on where only a run was killed
            time.sleep(rng.uniform(0, seconds / 2))
            victims = sorted(session(child))
            if rng.random() < 0.7:
                victims = [rng.choice(victims)] if victims else []
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed += [len(victims)] if victims else []
        code = wait(child)
        while session(child):  # what has lost its parent ends by itself
            time.sleep(0.05)
        for path in Path(".").glob("run*/**/checkpoint*.pt"):
            slim.read(str(path))
        found = results("run")
        assert all(found[name] == told for name, told in done.items()), "it was run again"
        done = found
        if code == 0:
            assert set(found) == set(expected), sorted(found)
            for name, (told, _) in found.items():
                assert told == expected[name], f"{name}: {told} is not {expected[name]}"
            ends, done = ends + 1, {}
            for path in Path(".").glob("run*"):
                shutil.rmtree(path)
    return {"killed": killed, "ends": ends}


def sabotage(where, nth, stock=False):
    """What kills this process within the ``nth`` write of a checkpoint.

    Args:
        where: ``save`` and ``copy``: half of the file is written; ``flush``, ``move``: before;
            ``moved``: after.
        stock: with fairseq's own way to copy.
    """
    seen = []

    def reached(path):
        seen.extend([path] if "checkpoint" in os.path.basename(path) else [])
        return len(seen) == nth

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def save(obj, file, original=torch.save):
        if reached(file.name):
            original(obj, buffer := io.BytesIO())
            half(buffer.getvalue(), file)
        original(obj, file)

    def half(data, file):
        file.write(data[: len(data) // 2])
        file.flush()
        die()

    def copyfile(source, target, original=shutil.copyfile):
        if reached(target):
            with open(target, "wb") as file:
                half(Path(source).read_bytes(), file)
        return original(source, target)

    def fsync(descriptor, original=os.fsync):
        if reached(os.readlink(f"/proc/self/fd/{descriptor}")):
            die()
        original(descriptor)

    def replace(source, target, original=os.replace):
        now = reached(target)
        if where == "moved":
            original(source, target)
        if now:
            die()
        if where == "move":
            original(source, target)

    if where == "save":
        torch.save = save
    elif where == "copy":
        shutil.copyfile = copyfile
    elif where == "flush":
        os.fsync = fsync
    else:
        os.replace = replace
    if stock:
        PathManager.copy = staticmethod(PathManager.copy.__wrapped__)


def within_writes(words, epochs, places):
    """Kill the second epoch's writes at ``places`` and go on. Returns, by place, the epoch that was
    left on the disk, or what reading it says."""
    words = [*words, "--save-dir"]
    finish([*words, "begun", "--max-epoch", "1"], "log")
    finish([*words, "whole", "--max-epoch", str(epochs)], "log")
    expected = content(Path("whole"))
    found = []
    for place in places:
        folder = Path("run")
        shutil.copytree("begun", folder)
        child = launch(
            [*words, "run", "--max-epoch", str(epochs)], "log", partial(sabotage, *place)
        )
        assert wait(child) == -signal.SIGKILL, place
        try:
            found.append(opens(folder)[0])
            finish([*words, "run", "--max-epoch", str(epochs)], "log")
            assert same(content(folder), expected), place
        except InputError as error:
            found.append(str(error))
        shutil.rmtree(folder)
    return found
