"""Programs that run one after another without the wait for imports: forks of one process that has
them.

``python forks.py MODULES`` imports the modules, then runs what each line of its stdin asks for
(JSON: the arguments of ``run``) and answers with a line of JSON: ``last`` or ``failed``.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path

from harness import HERE, Failed, reason_of


def run(words: list, log: str, threads: int = 1) -> str:
    """Run ``words``, a program (a path) or ``-m MODULE``, with its arguments, in a fork.

    Args:
        log: the file that gets what it prints.

    Returns:
        The last line of its stdout.

    Raises:
        Failed: with the line that says why.
    """
    words = [str(word) for word in words]
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if not pid:
        _be(words, str(log), threads)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise Failed(f"failed with status {status}: {reason_of(_read(log, 'err'))} (log: {log})")
    return (_read(log, "out").strip().splitlines() or [""])[-1]


def _read(log, end: str) -> str:
    return Path(f"{log}.{end}").read_text("utf-8", "replace")


def _be(words: list[str], log: str, threads: int):
    """Become the program: this does not return."""
    import torch

    code = 1
    try:
        for stream, end in ((1, "out"), (2, "err")):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(f"{log}.{end}", flags, 0o644), stream)
        torch.set_num_threads(threads)
        module = words[:1] == ["-m"]
        sys.argv = words[1:] if module else words
        start = runpy.run_module if module else runpy.run_path
        start(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = 0 if end.code is None else end.code if isinstance(end.code, int) else 1
        if code and not isinstance(end.code, int):
            print(f"Error: {end.code}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


class Server:
    """Forks of another Python.

    Args:
        python: its path.
        modules: what it imports first; nobody waits for that before the first run.
        log: the file that gets what the imports print.
    """

    def __init__(self, python: str, modules: list[str], log: Path):
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [python, str(HERE / "forks.py"), *modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def run(self, words: list, log, threads: int = 1) -> str:
        """As ``run``."""
        asked = {"words": [str(word) for word in words], "log": str(log), "threads": threads}
        try:
            print(json.dumps(asked), file=self.process.stdin, flush=True)
            told = json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            raise Failed(f"did not start: {reason_of(self.log.read_text())}") from None
        if "failed" in told:
            raise Failed(told["failed"])
        return told["last"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what imports print is no answer
    for module in sys.argv[1:]:
        importlib.import_module(module)
    for line in sys.stdin:
        try:
            told = {"last": run(**json.loads(line))}
        except Failed as error:
            told = {"failed": str(error)}
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main()
