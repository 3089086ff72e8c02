"""fairseq's command lines in processes forked from one that has imported fairseq already.

A start of ``fairseq-train`` spends six seconds on imports. The server pays them once, imports
nothing of the plugin, and forks a fresh child a command: argv, working directory, environment and
both streams are the child's own, the plugin is imported in the child alone, and what an uncaught
exception prints and returns is what Python itself would.

Protocol: a line of JSON in (program, argv, cwd, out), a line of JSON out (exit status).
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from types import SimpleNamespace

PROGRAMS = {
    name: f"fairseq_cli.{name.replace('-', '_')}" for name in ("train", "validate", "hydra-train")
}
#: What training imports when it gets there.
LATE = ("torch._dynamo", "torch.utils.tensorboard")


class ForkServer:
    """The client: ``run("train", DATA, "--arch", ...)`` is ``fairseq-train`` in a fresh process."""

    def __init__(self, folder):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(folder / "server.log", "w"),  # noqa: SIM115, the process owns it
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )

    def run(self, program, *argv, cwd=None):
        """Run a program of ``PROGRAMS``, or ``python`` with a script as its one argument.

        Returns:
            ``returncode``, ``stdout``, ``stderr``.
        """
        job = {
            "program": program,
            "argv": [str(word) for word in argv],
            "cwd": str(cwd or self.folder),
            "out": str(self.folder),
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        reply = self.process.stdout.readline()
        assert reply, (self.folder / "server.log").read_text()
        stdout, stderr = ((self.folder / name).read_text() for name in ("stdout", "stderr"))
        return SimpleNamespace(returncode=json.loads(reply), stdout=stdout, stderr=stderr)

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


def serve():
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in (*PROGRAMS.values(), *LATE):
        importlib.import_module(module)
    loaded = [name for name in sys.modules if name.split(".")[0] == "fairseq_peft"]
    assert not loaded, f"the plugin is in the server: {loaded}"
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            answer(job)
        _, status = os.waitpid(child, 0)
        replies.write(json.dumps(os.waitstatus_to_exitcode(status)) + "\n")
        replies.flush()


def answer(job):
    """The child: never returns."""
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            path = os.path.join(job["out"], name)
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.chdir(job["cwd"])
        if job["program"] == "python":
            sys.path.insert(0, "")
            code = call(lambda: exec(compile(job["argv"][0], "<script>", "exec"), {}))
        else:
            sys.argv = [f"fairseq-{job['program']}", *job["argv"]]
            code = call(sys.modules[PROGRAMS[job["program"]]].cli_main)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def call(main):
    """Call ``main`` as the interpreter would: the exit status."""
    try:
        main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    serve()
