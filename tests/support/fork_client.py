"""``fork_client.py ADDRESS -m MODULE ...`` is ``python -m MODULE ...`` as a fork of the server.

So are ``-c CODE`` and the programs of benchmarks/. Scripts get it as their PYTHON
(tests/support/fork_server.py). The number of threads and what else is read while Python starts are
the server's. What cannot be a fork is a process of its own: other options of Python, and a worker,
which has a parent to watch, and its clients, which must have the same environment. So is a sweep,
whose process, group or session a test may look for, unless the test sets FORK_SWEEPS.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "fairseq_peft" / "sweeps" / "worker.py"
#: A program of benchmarks/, as what follows -c. It reads one variable that is the server's.
PROGRAM = """
import os, runpy, sys
os.environ["FAIRSEQ_PEFT_SHARED"] = {shared!r}
sys.argv[0], sys.path[0] = {path!r}, {folder!r}
runpy.run_path({path!r}, run_name="__main__")
"""


def main():
    address, *words = sys.argv[1:]
    path = Path(*words[:1])
    if path.parent == ROOT / "benchmarks":
        shared = os.getenv("FAIRSEQ_PEFT_SHARED", "")
        program = PROGRAM.format(shared=shared, path=str(path), folder=str(path.parent))
        words[:1] = ["-c", program]
    own = words[2:3] == ["worker"] or "--worker" in words
    if words[2:3] == ["sweep"]:
        own = not os.getenv("FORK_SWEEPS")
    if words[:1] not in (["-m"], ["-c"]) or own:
        os.execv(sys.executable, [sys.executable, *words])
    worker = runpy.run_path(str(WORKER))
    start = worker["READ_AT_START"]
    server = json.loads(Path(address).with_name("environ.json").read_text())
    environ = {name: value for name, value in os.environ.items() if not name.startswith(start)}
    environ.update((name, value) for name, value in server.items() if name.startswith(start))
    status = worker["run"](address, "python", words, environ=environ)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main()
