"""Command lines in processes forked from one that has imported fairseq already.

It is the package's own worker (fairseq_peft/sweeps/worker.py), but without the plugin: the tests
look at how fairseq imports it, so each child imports it by itself.
"""

from __future__ import annotations

import json
import logging
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

WORKER = Path(__file__).resolve().parents[2] / "fairseq_peft" / "sweeps" / "worker.py"
CLIENT = Path(__file__).with_name("fork_client.py")


class ForkServer:
    """The client: ``run("train", DATA, "--arch", ...)`` is ``fairseq-train`` in a fresh process."""

    def __init__(self, folder):
        self.folder = folder
        self.environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.sockets = tempfile.TemporaryDirectory(prefix="fairseq-peft.")  # of a short name
        self.address = os.path.join(self.sockets.name, "worker")
        Path(self.sockets.name, "environ.json").write_text(json.dumps(self.environ))
        with open(folder / "server.log", "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, self.address, str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environ,
            )

    def wait(self):
        """Until it takes requests."""
        while not os.path.exists(self.address):
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.05)

    def run(self, program, *argv, cwd=None):
        """Run a program of the worker, or ``python`` with a script as its one argument.

        Returns:
            ``returncode``, ``stdout``, ``stderr``.
        """
        from fairseq_peft.sweeps import worker

        self.wait()
        if program == "python":
            argv = ("-c", *argv)
        paths = [self.folder / name for name in ("stdout", "stderr")]
        with open(os.devnull) as nothing, open(paths[0], "w") as out, open(paths[1], "w") as err:
            streams = [file.fileno() for file in (nothing, out, err)]
            code = worker.run(
                self.address, program, argv, cwd or self.folder, self.environ, streams
            )
        stdout, stderr = (path.read_text() for path in paths)
        return SimpleNamespace(returncode=code, stdout=stdout, stderr=stderr)

    def python(self):
        """A program that stands in for Python: ``python -m MODULE ...`` and ``python -c CODE ...``
        are forks, whose own Python it is, too."""
        self.wait()
        path = Path(self.sockets.name) / "python"
        if not path.exists():
            path.write_text(
                f'#!/bin/sh\nexport FORKING_PYTHON="$0"\n'
                f'exec "{sys.executable}" "{CLIENT}" "{self.address}" "$@"\n'
            )
            path.chmod(0o755)
        return str(path)

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=60)
        self.sockets.cleanup()


def cli_main():
    """The program ``python``: ``-c CODE`` or ``-m MODULE``, and arguments."""
    how, what, *arguments = sys.argv[1:]
    if "FORKING_PYTHON" in os.environ:  # as in a Python that has just started, no log is set up yet
        sys.executable = os.environ.pop("FORKING_PYTHON")
        logging.root.handlers.clear()
        logging.root.setLevel(logging.WARNING)
        # It sets the log up while it is imported, whoever imports it (fairseq_peft.train).
        vars(sys.modules["fairseq_cli"]).pop("train", None)
        sys.modules.pop("fairseq_cli.train", None)
    sys.argv = [how, *arguments]
    # The server's streams are files, where a position is kept; these may be pipes.
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, buffering, encoding="utf-8", errors=errors, closefd=False)
        for number, mode, buffering, errors in (
            (0, "r", -1, "surrogateescape"),
            (1, "w", -1, "strict"),
            (2, "w", 1, "backslashreplace"),
        )
    )
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<script>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    worker = runpy.run_path(str(WORKER))
    programs = {**worker["PROGRAMS"], "python": "fork_server"}
    modules = (*worker["LATE"], "composed")
    worker["serve"](sys.argv[1], programs, modules, parent=int(sys.argv[2]))
