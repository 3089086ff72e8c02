"""Command lines in processes forked from one that has imported fairseq already.

It is the package's own worker (fairseq_peft/sweeps/worker.py). A second one, a fork of it, has
imported the plugin, too, and runs the commands whose --user-dir is the package. Everything else is
a child of the first, and imports the plugin by itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
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
PACKAGE = WORKER.parents[1]
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

    def wait(self, address=None):
        """Until it takes requests."""
        while not os.path.exists(address or self.address):
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.05)

    def run(self, program, *argv, cwd=None, imported=True):
        """Run a program of the worker, or ``python`` with a script as its one argument.

        Args:
            imported: whether ``--user-dir`` may find the plugin imported.

        Returns:
            ``returncode``, ``stdout``, ``stderr``.
        """
        from fairseq_peft.sweeps import worker

        argv = [str(word) for word in argv]
        named = ("--user-dir", str(PACKAGE)) in zip(argv, argv[1:])
        address = f"{self.address}.plugin" if named and imported else self.address
        self.wait(address)
        if program == "python":
            argv = ["-c", *argv]
        paths = [self.folder / name for name in ("stdout", "stderr")]
        with open(os.devnull) as nothing, open(paths[0], "w") as out, open(paths[1], "w") as err:
            streams = [file.fileno() for file in (nothing, out, err)]
            code = worker.run(address, program, argv, cwd or self.folder, self.environ, streams)
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
    tempfile.tempdir = None  # it is where this environment says
    if "FORKING_PYTHON" in os.environ:  # as in a Python that has just started, no log is set up yet
        forking = os.environ.pop("FORKING_PYTHON")
        # A sweep's worker and the clients of that are of one Python.
        sys.executable = sys.executable if arguments[:1] == ["sweep"] else forking
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


def main(address, parent):
    worker = runpy.run_path(str(WORKER))
    programs = {**worker["PROGRAMS"], "python": "fork_server"}
    modules = (*programs.values(), *worker["LATE"], "composed")
    given = dict(os.environ)
    for module in modules:
        with contextlib.suppress(ImportError):  # of those that may be missing; serve() knows them
            importlib.import_module(module)
    gc.collect()
    gc.freeze()
    if os.fork() == 0:
        importlib.import_module("fairseq_peft.plugin")
        sys.modules["composed"].compose("sentence_classification", "roberta_small_lora")
        address, parent = f"{address}.plugin", os.getppid()
    os.environ.clear()  # torch has set a variable; what is compared with a request's is as given
    os.environ.update(given)
    worker["serve"](address, programs, modules, parent)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
