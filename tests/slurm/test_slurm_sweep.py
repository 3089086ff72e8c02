"""A sweep on a real Slurm of two nodes, through all that befalls jobs there, ends as it does here.

SLURM_CELLS=3 python -m pytest tests/slurm     12 runs in place of 4, and Slurm's own time limit
KILLS=50 python -m pytest tests/slurm          processes killed at random moments, too
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import TINY_FLAGS
from workers import until

pytest.importorskip("fairseq")
pytest.importorskip("submitit")
pytestmark = pytest.mark.end_to_end

from runs import metrics, without_clocks  # noqa: E402

from fairseq_peft.checkpoints import slim  # noqa: E402
from fairseq_peft.runs.log import valid_lines  # noqa: E402

CELLS = ("scratch/lora", "scratch/head_only", "scratch/bitfit")[: int(os.getenv("SLURM_CELLS", 1))]
RATES, SEEDS, EPOCHS = ("1e-3", "1e-2"), (1, 2, 3), 3
KILLS = int(os.getenv("KILLS", "0"))

#: The sweep as a fork of the test's server, with a Python for the jobs that is none. On this disk
#: a result is seen as soon as it is there.
SWEEP = """
import os, sys
sys.executable = {python!r}
print("process", os.getpid(), flush=True)
from fairseq_peft.sweeps import slurm
slurm.LOOK_S = slurm.RESULT_S = 1
from fairseq_peft.cli import main
sys.exit(main(sys.argv[1:]))
"""
ON_SLURM = ("--launcher", "slurm", "--slurm-partition", "low", "--slurm-cpus", 1)
ON_SLURM += ("--slurm-time", 10, "--slurm-extra", "comment=of a test")
#: Each LoRA's first training stops after an epoch, until it is killed.
HELD = ("--slurm-setup", f"export PYTHONPATH={Path(__file__).with_name('held')}")


class Sweep:
    """``fairseq-peft sweep`` in the background."""

    def __init__(self, words, python, environ):
        words = [*words, "--every", 1000]
        code = SWEEP.format(python=sys.executable)
        self.process = subprocess.Popen(
            [python, "-c", code, *map(str, words)],
            env={**os.environ, **environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.pid = int(self.process.stdout.readline().split()[1])

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self.end()

    def end(self):
        """Wait for it; returns its exit status and what it has said."""
        said = self.process.communicate(timeout=600)[0]
        return self.process.returncode, said


@pytest.fixture
def words(data_folder, tmp_path):
    """``words(folder)``: the sweep whose runs land there."""

    def of(folder):
        return [
            *("sweep", "--data", data_folder, "--cells", " ".join(CELLS)),
            *("--seeds", " ".join(map(str, SEEDS)), "--rates", f"SCRATCH={' '.join(RATES)}"),
            *("--epochs", EPOCHS, "--batch-size", 8, "--precision", "fp32", "--threads", 1),
            *("--arch-args", " " + " ".join(TINY_FLAGS), "--runs", tmp_path / folder),
        ]

    return of


@pytest.fixture
def sweep(words, python, cluster):
    """``sweep(folder, *flags)``: the sweep there, started."""
    started = []

    def start(folder, *flags):
        started.append(Sweep([*words(folder), *flags], python, cluster.environ))
        return started[-1]

    yield start
    for each in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each.pid, signal.SIGKILL)


def processes(*words):
    """Ids of the processes whose command lines have all of ``words``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if set(words) <= set(path.read_bytes().decode(errors="replace").split("\0")):
                found.append(int(path.parent.name))
    return found


class Run:
    """A run on the cluster, seen from outside."""

    def __init__(self, folder):
        self.folder = folder

    def num_epochs(self):
        path = self.folder / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def process(self):
        """The process that trains; None where there is none."""
        return next(iter(processes("--save-dir", str(self.folder))), None)

    def job(self):
        """Slurm's id of the job that trains it."""
        words = Path(f"/proc/{self.process()}/environ").read_text().split("\0")
        environ = dict(word.split("=", 1) for word in words if "=" in word)
        array = environ.get("SLURM_ARRAY_JOB_ID")
        return f"{array}_{environ['SLURM_ARRAY_TASK_ID']}" if array else environ["SLURM_JOB_ID"]

    def went_on_from(self):
        """The epochs that were over each time its training went on."""
        log = (self.folder / "train.log").read_text()
        return [
            int(epoch) - 1 for epoch in re.findall(r"Loaded checkpoint .* \(epoch (\d+) @", log)
        ]


def held(runs):
    """Wait until the processes of ``runs`` have stopped themselves; returns their ids."""

    def stopped(process):
        with contextlib.suppress(OSError):
            return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
        return False

    seen(lambda: all(stopped(run.process()) for run in runs))
    return [run.process() for run in runs]


def seen(condition):
    until(condition, 300, every_s=0.3)


def warn_of_the_time_limit(cluster, job):
    """Let Slurm send its signal, or, where there is no time to wait for that, send it.

    It goes to the step alone: while others of an array are pending, Slurm answers a signal to a
    whole job by "try again later", though it has delivered it, and scancel repeats it for 95 s.
    """
    if len(CELLS) == 1:
        cluster.run("scancel", "--signal=USR2", f"{job}.0")
        return
    shown = cluster.run("scontrol", "show", "job", job)
    hours, minutes = map(int, re.search(r"RunTime=(\d+):(\d+)", shown).groups())
    limit = 60 * hours + minutes + 2  # the next but one: it warns 90 s before
    cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")


def results(runs):
    """All that runs have left but times: folder -> its result and metrics."""
    found = {}
    for root in (runs, runs.with_name(f"{runs.name}-grid")):
        for path in root.rglob("result.json"):
            name = f"{root.name[len(runs.name) :]}/{path.parent.relative_to(root)}"
            result = without_clocks(json.loads(path.read_text()))
            del result["command"], result["train_seconds"]
            found[name] = result, without_clocks(valid_lines(metrics(path.parent)))
    return found


def table(runs):
    """The figures of the report."""
    from fairseq_peft.cli import main

    assert main(["report", str(runs), "--out", str(runs / "report")]) == 0
    rows = json.loads((runs / "report" / "report.json").read_text())
    for row in rows:
        del row["seconds_mean"], row["tokens_per_second_mean"]
    return without_clocks(rows)


def test_whatever_befalls_the_jobs_the_table_is_that_of_this_machine(sweep, cluster, tmp_path):
    """A time limit, a preemption, a drained node, a sweep that is killed and given again; then a
    job that is cancelled and one whose training is killed, and the sweep given a third time."""
    first = sweep("there", *ON_SLURM, *HELD)
    cell = "tiny/scratch/lora"
    grid = [Run(tmp_path / f"there-grid/lr{rate}" / cell / "seed1") for rate in RATES]

    held(grid)
    limited, preempted = (run.job() for run in grid)

    warn_of_the_time_limit(cluster, limited)
    seen(lambda: cluster.jobs()[limited][0] == "PENDING")
    cluster.run("scontrol", "update", f"JobId={limited}", "TimeLimit=10")

    # A job of a partition that goes before takes its node.
    node = cluster.jobs()[preempted][1]
    other = {"n1": "n2", "n2": "n1"}[node]
    cluster.run("scontrol", "update", f"NodeName={other}", "State=drain", "Reason=test")
    cluster.run("sbatch", "--partition=high", f"--nodelist={node}", "--output=none", "--wrap=true")
    seen(lambda: cluster.jobs()[preempted][0] == "PENDING")

    # The sweep is killed; the one that is given again submits neither of them. One runs, where the
    # node is not drained; when that is resumed, so does the other.
    first.kill()
    second = sweep("there", *ON_SLURM, *HELD)
    epochs = {run: run.num_epochs() for run in grid}

    def going():
        cluster.start_now()
        return [run for run in grid if run.num_epochs() > epochs[run]]

    seen(going)
    seen(lambda: cluster.nodes()[other] == "drained")
    assert other not in [where for state, where in cluster.jobs().values() if state == "RUNNING"]
    cluster.run("scontrol", "update", f"NodeName={other}", "State=resume")
    seen(lambda: len(going()) == 2)

    seeds = [Run(tmp_path / "there" / cell / f"seed{seed}") for seed in SEEDS[1:]]
    _, pid = held(seeds)
    cluster.run("scancel", seeds[0].job())
    os.kill(pid, signal.SIGKILL)
    status, said = second.end()
    assert status == 1 and "Traceback" not in said, said
    assert "Slurm has it already" in said  # of two, unless one has ended meanwhile
    assert f"seed {SEEDS[1]} lr" in said and "(CANCELLED)" in said, said
    assert f"seed {SEEDS[2]} lr" in said and "2 of" in said.splitlines()[-1], said

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert before
    status, said = sweep("there", *ON_SLURM, *HELD).end()
    assert status == 0, said
    assert said.count("started") == 2  # what was done is not run again
    assert before == {path: path.stat().st_mtime_ns for path in before}
    for run in (*grid, *seeds):
        assert run.went_on_from() == [1], run.folder

    status, said = sweep("here", "--jobs", 2).end()
    assert status == 0, said
    num_runs = len(CELLS) * (len(RATES) + len(SEEDS) - 1)
    expected = results(tmp_path / "here")
    assert len(expected) == num_runs + len(CELLS)  # the picked run of a grid is there twice
    assert results(tmp_path / "there") == expected
    assert table(tmp_path / "there") == table(tmp_path / "here")


@pytest.mark.skipif(not KILLS, reason="scripts/test.sh kill")
def test_jobs_at_random_moments(sweep, tmp_path):
    """Who trains, who looks after a job and the sweep itself are killed, one at a time."""
    folders = [f"there-grid/lr{rate}/tiny/{cell}/seed1" for rate in RATES for cell in CELLS]
    folders += [f"there/tiny/{cell}/seed{seed}" for seed in SEEDS[1:] for cell in CELLS]
    runs = [Run(tmp_path / folder) for folder in folders]
    assert sweep("here", "--jobs", 2).end()[0] == 0
    expected = results(tmp_path / "here")
    rng, num_killed, num_ends = random.Random(1), 0, 0
    while num_killed < KILLS or not num_ends:
        given = sweep("there", *ON_SLURM)
        while num_killed < KILLS and given.process.poll() is None:
            time.sleep(rng.uniform(0, 5))
            jobs = processes("submitit.core._submit", str(tmp_path / "there" / "slurm" / "%j"))
            trainings = filter(None, [run.process() for run in runs])
            victim = rng.choice([given.pid, *jobs, *trainings])
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                num_killed += 1
        status, said = given.end()
        assert "Traceback" not in said, said
        for path in tmp_path.glob("there*/**/checkpoint*.pt"):
            slim.read(str(path))
        if status == 0:
            assert results(tmp_path / "there") == expected
            num_ends += 1
            for folder in tmp_path.glob("there*"):
                shutil.rmtree(folder)
