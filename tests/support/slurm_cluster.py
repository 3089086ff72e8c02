"""A Slurm of this machine alone: munged, slurmctld and two slurmd of one CPU each, in a folder.

    with Cluster(folder) as cluster:
        subprocess.run(["sinfo"], env={**os.environ, **cluster.environ})

Everything runs as the user of the tests, listens on 127.0.0.1 at free ports, and ends with the
block; nothing of a Slurm that the machine may have is read or changed.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")

CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=2
ReturnToService=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=1
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 MaxTime=60
PartitionName=high Nodes=n1,n2 PriorityTier=2 MaxTime=60
"""


def missing() -> str | None:
    """Why there can be no Slurm here; None if there can."""
    if not sys.platform.startswith("linux"):
        return "Slurm needs Linux"
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return f"{', '.join(absent)} not found: apt-get install slurm-wlm munge" if absent else None


class Cluster:
    """Two nodes of one CPU: n1 and n2, in the partitions low and high, which preempts low."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environ = {"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons = []

    def __enter__(self):
        self.folder.chmod(0o755)
        for name in ("munge", "state", "n1", "n2"):
            (self.folder / name).mkdir(mode=0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        with contextlib.ExitStack() as sockets:
            ports = [_free_port(sockets) for _ in range(3)]
        text = CONF.format(
            folder=self.folder,
            host=socket.gethostname().split(".")[0],
            user=pwd.getpwuid(os.getuid()).pw_name,
            **dict(zip(("controller", "n1", "n2"), ports)),
        )
        (self.folder / "slurm.conf").write_text(text)
        try:
            munge = {name: f"{self.folder}/munge/{name}" for name in ("socket", "pid", "seed")}
            self._start(
                *("munged", "--foreground", "--force", f"--key-file={key}"),
                *(f"--socket={munge['socket']}", f"--pid-file={munge['pid']}"),
                *(f"--seed-file={munge['seed']}", "--num-threads=1"),
            )
            self._until(lambda: os.path.exists(munge["socket"]))
            self._start("slurmctld", "-D")
            for node in ("n1", "n2"):
                self._start("slurmd", "-D", "-N", node)
            self._until(lambda: self.nodes() == {"n1": "idle", "n2": "idle"})
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        with contextlib.suppress(subprocess.SubprocessError, OSError, AssertionError):
            self.run("scancel", "--user", pwd.getpwuid(os.getuid()).pw_name)
            self._until(lambda: not self.run("squeue", "--noheader"), 30)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def run(self, *words) -> str:
        """What a program of Slurm prints.

        Raises:
            AssertionError: it fails.
        """
        environ = {**os.environ, **self.environ}
        done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def jobs(self) -> dict:
        """Job id -> (state, node) of all jobs."""
        words = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T %N"]
        rows = (line.split() for line in self.run(*words).splitlines())
        return {row[0]: (row[1], row[2] if len(row) > 2 else None) for row in rows}

    def nodes(self) -> dict:
        """Node -> state."""
        try:
            lines = self.run("sinfo", "--noheader", "--Node", "--partition=low", "--format=%N %T")
        except AssertionError:  # the controller does not answer yet
            return {}
        return dict(line.split() for line in lines.splitlines())

    def start_now(self) -> None:
        """What is requeued would wait for two minutes."""
        for job_id, (state, _) in self.jobs().items():
            if state == "PENDING":
                with contextlib.suppress(AssertionError):  # it has started
                    self.run("scontrol", "update", f"JobId={job_id}", "StartTime=now")

    def _start(self, *words):
        path = self.folder / f"{words[-1] if words[0] == 'slurmd' else words[0]}.log"
        with open(path, "w") as log:
            environ = {**os.environ, **self.environ}
            self._daemons.append(
                subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ
                )
            )

    def _until(self, condition, seconds=60):
        deadline = time.monotonic() + seconds
        while not condition():
            logs = {path.name: path.read_text()[-1000:] for path in self.folder.glob("*.log")}
            assert all(daemon.poll() is None for daemon in self._daemons), logs
            assert time.monotonic() < deadline, logs
            time.sleep(0.1)


def _free_port(sockets):
    opened = sockets.enter_context(socket.socket())
    opened.bind(("127.0.0.1", 0))
    return opened.getsockname()[1]
