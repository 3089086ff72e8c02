"""A sweep on a real Slurm of two nodes, through all that befalls jobs there, ends as it does here.

SLURM_CELLS=3 python -m pytest tests/slurm     12 runs in place of 4
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest
from helpers import TINY_FLAGS
from workers import alive, until

pytest.importorskip("fairseq")
pytest.importorskip("submitit")
pytestmark = pytest.mark.end_to_end

from runs import metrics, without_clocks  # noqa: E402

from fairseq_peft.runs.log import valid_lines  # noqa: E402

CELLS = ("scratch/lora", "scratch/head_only", "scratch/bitfit")[: int(os.getenv("SLURM_CELLS", 1))]
RATES, SEEDS, EPOCHS = ("1e-3", "1e-2"), (1, 2, 3), 20

#: The sweep as a fork of the test's server, with a Python for the jobs that is none.
SWEEP = """
import os, sys
sys.executable = {python!r}
print("process", os.getpid(), flush=True)
from fairseq_peft.cli import main
sys.exit(main(sys.argv[1:]))
"""
ON_SLURM = ("--launcher", "slurm", "--slurm-partition", "low", "--slurm-cpus", 1)
ON_SLURM += ("--slurm-time", 10, "--slurm-extra", "comment=of a test")


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
def on_slurm(words, python, cluster):
    """``on_slurm(folder)``: the sweep there, started."""
    started = []

    def start(folder):
        started.append(Sweep([*words(folder), *ON_SLURM], python, cluster.environ))
        return started[-1]

    yield start
    for sweep in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(sweep.pid, signal.SIGKILL)


class Run:
    """A run on the cluster, seen from outside."""

    def __init__(self, folder):
        self.folder = folder

    def num_epochs(self):
        path = self.folder / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def process(self):
        """The process that trains; None where there is none."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if b"--save-dir" in words and str(self.folder).encode() in words:
                    return int(path.parent.name)
        return None

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


def hold(runs):
    """Stop the processes of ``runs`` as soon as a checkpoint is there, and until they are killed:
    Slurm lets a process go on that it is about to kill, and these runs are short.

    Returns:
        Their ids.
    """
    processes, held = {}, set()

    def all_held():
        for run in runs:
            if run not in processes:
                found = run.process()
                processes.update({run: found} if found else {})
            elif run not in held and (run.folder / "checkpoint_last.pt").exists():
                Thread(target=keep_stopped, args=[processes[run]], daemon=True).start()
                held.add(run)
        return len(held) == len(runs)

    until(all_held, 300)
    assert all(run.num_epochs() < EPOCHS for run in runs), "they are held too late"
    return [processes[run] for run in runs]


def keep_stopped(process):
    while alive(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGSTOP)
        time.sleep(0.01)


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


def test_whatever_befalls_the_jobs_the_table_is_that_of_this_machine(
    words, on_slurm, cluster, tmp_path, python
):
    """A time limit, a preemption, a drained node, a sweep that is killed and given again; then a
    job that is cancelled and one whose training is killed, and the sweep given a third time."""
    sweep = on_slurm("there")
    cell = "tiny/scratch/lora"
    grid = [Run(tmp_path / f"there-grid/lr{rate}" / cell / "seed1") for rate in RATES]

    hold(grid)
    limited, preempted = (run.job() for run in grid)

    # Slurm warns a job before its time limit by this signal.
    cluster.run("scancel", "--signal=USR2", limited)
    until(lambda: cluster.jobs()[limited][0] == "PENDING")

    # A job of a partition that goes before takes its node.
    node = cluster.jobs()[preempted][1]
    other = {"n1": "n2", "n2": "n1"}[node]
    cluster.run("scontrol", "update", f"NodeName={other}", "State=drain", "Reason=test")
    first = ["sbatch", "--partition=high", f"--nodelist={node}", "--output=none", "--wrap=true"]
    cluster.run(*first)
    until(lambda: cluster.jobs()[preempted][0] == "PENDING")

    # The sweep is killed; the one that is given again submits neither of them. One runs, where the
    # node is not drained; when that is resumed, so does the other.
    sweep.kill()
    sweep = on_slurm("there")
    epochs = {run: run.num_epochs() for run in grid}

    def going():
        cluster.start_now()
        return [run for run in grid if run.num_epochs() > epochs[run]]

    until(going, 300)
    assert cluster.nodes()[other] == "drained"
    assert other not in [where for state, where in cluster.jobs().values() if state == "RUNNING"]
    cluster.run("scontrol", "update", f"NodeName={other}", "State=resume")
    until(lambda: len(going()) == 2, 300)

    seeds = [Run(tmp_path / "there" / cell / f"seed{seed}") for seed in SEEDS[1:]]
    _, pid = hold(seeds)
    cluster.run("scancel", seeds[0].job())
    os.kill(pid, signal.SIGKILL)
    status, said = sweep.end()
    assert status == 1 and "Traceback" not in said, said
    assert "Slurm has it already" in said  # of two, unless one has ended meanwhile
    assert f"seed {SEEDS[1]} lr" in said and "(CANCELLED)" in said, said
    assert f"seed {SEEDS[2]} lr" in said and "2 of" in said.splitlines()[-1], said

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert before
    status, said = on_slurm("there").end()
    assert status == 0, said
    assert said.count("started") == 2  # what was done is not run again
    assert before == {path: path.stat().st_mtime_ns for path in before}
    for run in (*grid, *seeds):
        (epoch,) = run.went_on_from()
        assert 1 <= epoch < EPOCHS, run.folder

    here = subprocess.run(
        [python, "-m", "fairseq_peft.cli", *map(str, words("here")), "--jobs", "2"],
        env={**os.environ, "FORK_SWEEPS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert here.returncode == 0, here.stderr
    num_runs = len(CELLS) * (len(RATES) + len(SEEDS) - 1)
    expected = results(tmp_path / "here")
    assert len(expected) == num_runs + len(CELLS)  # the picked run of a grid is there twice
    assert results(tmp_path / "there") == expected
    assert table(tmp_path / "there") == table(tmp_path / "here")
