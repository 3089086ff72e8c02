"""The worker: a run in it is as in a process of its own, its result and its manners."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys

import pytest
from helpers import PACKAGE, ROOT
from workers import alive, children, serving, until

from fairseq_peft.sweeps import worker

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")

SERVE = """
import runpy, sys
serve = runpy.run_path({path!r})["serve"]
serve({address!r}, {{"probe": "probe"}}, {modules!r}, parent={parent!r})
"""
#: The program that these tests run: a script as its first argument, the state it meets in `state`.
PROBE = "import sys\nstate = []\ndef cli_main():\n    exec(sys.argv[1], globals())\n"


@pytest.fixture(scope="module")
def probe_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.py").write_text(PROBE)
    return folder


@pytest.fixture(scope="module")
def serve_probe(probe_folder):
    """``serve_probe(modules)``: a worker for ``probe``, without fairseq."""

    def start(modules=(), threads="1", parent=None):
        path = str(PACKAGE / "sweeps" / "worker.py")

        def command(address):
            code = SERVE.format(path=path, address=address, modules=modules, parent=parent)
            return [sys.executable, "-c", code]

        environ = {**os.environ, "OMP_NUM_THREADS": threads}
        return serving(command, cwd=probe_folder, env=environ)

    return start


@pytest.fixture(scope="module")
def light(serve_probe):
    with serve_probe() as (address, process):
        yield address, process


class Output:
    """A file that a run writes to."""

    def __init__(self, folder):
        self.folder = folder

    def run(self, address, code, *argv, stdin="", **more):
        paths = [self.folder / name for name in ("in", "out", "err")]
        paths[0].write_text(stdin)
        with open(paths[0]) as source, open(paths[1], "w") as out, open(paths[2], "w") as err:
            streams = [file.fileno() for file in (source, out, err)]
            more.setdefault("environ", {**os.environ, "OMP_NUM_THREADS": "1"})
            status = worker.run(address, "probe", [code, *argv], streams=streams, **more)
        return status, paths[1].read_text(), paths[2].read_text()


@pytest.fixture
def probe(light, tmp_path):
    """``probe(code, ...)``: status, stdout and stderr of ``code`` in the light worker."""
    output = Output(tmp_path)
    return lambda code, *argv, **more: output.run(light[0], code, *argv, **more)


# ---- What a run gets and gives back --------------------------------------------------------------


def test_a_run_has_what_its_client_has(probe, tmp_path):
    code = (
        "import os, sys; mask = os.umask(0); print(os.getcwd(), sys.argv[2:], os.environ['MINE'], "
        "'HOME' in os.environ, oct(mask), sys.path[0], sys.modules['__main__'].__name__); "
        "sys.stderr.write(sys.stdin.read())"
    )
    environ = {"MINE": "é", **worker._read_at_start({**os.environ, "OMP_NUM_THREADS": "1"})}
    del environ["sys.executable"]
    before = os.umask(0o027)
    try:
        status, out, err = probe(
            code, "a b", "--c", cwd=tmp_path, stdin="to read\n", environ=environ
        )
    finally:
        os.umask(before)
    assert status == 0 and err == "to read\n"
    assert out == f"{tmp_path} ['a b', '--c'] é False 0o27 {tmp_path} probe\n"


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("pass", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit(-1)", 255, ""),
        ("sys.exit('a sentence')", 1, "a sentence\n"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import os; os._exit(7)", 7, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", 1, "KeyboardInterrupt"),
    ],
)
def test_exit_statuses(probe, code, status, error):
    found, _, err = probe(code)
    assert found == status
    assert error in err if error else not err


def test_a_run_leaves_nothing_to_the_next(probe, tmp_path):
    code = (
        "import os, random, warnings; print(len(state), 'mine' in os.environ, os.getcwd()); "
        "state.append(1); os.environ['mine'] = '1'; os.chdir('/'); warnings.simplefilter('error')"
    )
    first = probe(code, cwd=tmp_path)
    assert first == (0, f"0 False {tmp_path}\n", "")
    assert probe(code, cwd=tmp_path) == first


def test_the_end_of_a_run_is_that_of_an_interpreter(probe):
    """Threads are waited for, then atexit runs, then the streams are flushed."""
    code = (
        "import atexit, threading, time; atexit.register(lambda: sys.stdout.write('at exit')); "
        "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start(); print('main')"
    )
    assert probe(code) == (0, "main\nthread\nat exit", "")


def test_runs_go_on_at_once(light, probe_folder, tmp_path):
    """Each waits for the other's file."""
    code = (
        "import os, sys, time\n"
        "open(sys.argv[2], 'w').close()\n"
        "while not os.path.exists(sys.argv[3]): time.sleep(0.01)\n"
    )
    clients = [client(light[0], code, tmp_path / a, tmp_path / b) for a, b in ("xy", "yx")]
    assert [each.wait(timeout=100) for each in clients] == [0, 0]


def client(address, *argv):
    """A process that waits for a run of ``probe``."""
    program = (
        "import sys; from fairseq_peft.sweeps import worker; "
        "sys.exit(worker.run(sys.argv[1], 'probe', sys.argv[2:]))"
    )
    command = [sys.executable, "-c", program, address, *map(str, argv)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE)


@pytest.mark.end_to_end
def test_threads_of_torch_start_in_the_child(serve_probe, tmp_path, probe_folder):
    """A pool that had been started before the fork would hang here; and the sums are the same."""
    code = (
        "import hashlib, torch; torch.manual_seed(1); x = torch.randn(700, 700); "
        "y = (x @ x).softmax(1).sum(0); "
        "print(torch.get_num_threads(), hashlib.sha256(y.numpy().tobytes()).hexdigest())"
    )
    environ = {**os.environ, "OMP_NUM_THREADS": "2"}
    own = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    with serve_probe(("numpy", "torch"), threads="2") as (address, _):
        for _ in range(2):
            status, out, err = Output(tmp_path).run(address, code, environ=environ)
            assert status == 0, err
            assert out == own.stdout and out.startswith("2 ")


# ---- Declined runs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"OMP_NUM_THREADS": "3"}, "another OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "7"}, "another CUDA_VISIBLE_DEVICES"),
        ({"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "5"}, "another PYTHONHASHSEED"),
    ],
)
def test_what_is_read_at_the_start_must_be_the_same(probe, more, reason):
    with pytest.raises(worker.Declined, match=reason):
        probe("pass", environ={**os.environ, **more})


def test_no_worker_and_no_such_program(light, tmp_path):
    with pytest.raises(worker.Declined, match="no worker answers at"):
        worker.run(tmp_path / "missing", "probe", [])
    with pytest.raises(worker.Declined, match="runs probe, not train"):
        worker.run(light[0], "train", [])


# ---- Ends ----------------------------------------------------------------------------------------

#: Starts a process of its own, ignores SIGTERM if asked to, and stays.
STAY = (
    "import os, signal, subprocess, sys, time\n"
    "if sys.argv[3] == 'stubborn': signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "other = subprocess.Popen(['sleep', '100'])\n"
    "with open(sys.argv[2] + '.tmp', 'w') as file: file.write(f'{os.getpid()} {other.pid}')\n"
    "os.rename(sys.argv[2] + '.tmp', sys.argv[2])\n"
    "time.sleep(100)\n"
)
#: Until a file is there.
WAIT = "import os, sys, time\nwhile not os.path.exists(sys.argv[2]): time.sleep(0.01)"


def staying(address, path, manners="polite"):
    """A client whose run stays, and the run's processes."""
    waiting = client(address, STAY, path, manners)
    until(path.exists)
    return waiting, [int(word) for word in path.read_text().split()]


def test_only_its_user_may_open_the_socket(light):
    assert stat.S_IMODE(os.stat(light[0]).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(light[0])).st_mode) == 0o700


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_client_that_goes_takes_its_run_along(light, probe, tmp_path, number):
    waiting, pids = staying(light[0], tmp_path / "pids")
    waiting.send_signal(number)
    until(lambda: not any(map(alive, pids)))
    waiting.wait(timeout=100)
    assert probe("pass")[0] == 0


@pytest.mark.end_to_end
def test_a_stubborn_run_is_killed(light, tmp_path):
    waiting, pids = staying(light[0], tmp_path / "pids", "stubborn")
    waiting.kill()
    until(lambda: not any(map(alive, pids)), worker.GRACE_S + 100)
    waiting.wait(timeout=100)


def test_a_killed_run_is_its_own_failure(light, probe, tmp_path):
    waiting, pids = staying(light[0], tmp_path / "pids")
    os.kill(pids[0], signal.SIGKILL)
    assert waiting.wait(timeout=100) == (-signal.SIGKILL) & 0xFF
    os.kill(pids[1], signal.SIGKILL)
    assert probe("pass")[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_ends_takes_its_runs_along(serve_probe, tmp_path, number):
    with serve_probe() as (address, process):
        waiting, pids = staying(address, tmp_path / "pids")
        process.send_signal(number)
        assert process.wait(timeout=100) == 0
        until(lambda: not any(map(alive, pids)))
        assert not os.path.exists(address)
        assert waiting.wait(timeout=100) == (-signal.SIGTERM) & 0xFF


def test_a_killed_worker_leaves_its_runs_in_peace(serve_probe, tmp_path):
    with serve_probe() as (address, process):
        waiting = client(address, WAIT, tmp_path / "go")
        until(lambda: children(process.pid) and children(children(process.pid)[0]))
        process.kill()
        process.wait()
        (tmp_path / "go").write_text("")
        assert waiting.wait(timeout=100) == 0
        with pytest.raises(worker.Declined, match="no worker answers"):
            worker.run(address, "probe", [])


def test_a_killed_handler_is_a_failure_in_a_sentence(serve_probe, tmp_path):
    with serve_probe() as (address, process):
        waiting, pids = staying(address, tmp_path / "pids")
        os.kill(children(process.pid)[0], signal.SIGKILL)
        assert waiting.wait(timeout=100) == 1
        for pid in pids:  # they hold its stderr open
            os.kill(pid, signal.SIGKILL)
        assert b"ended before the run did" in waiting.stderr.read()


def test_a_worker_leaves_with_the_process_that_started_it(probe_folder, tmp_path):
    """Here a shell that ends at once; the run that goes on is the last."""
    address = tmp_path / "w"
    code = SERVE.format(
        path=str(PACKAGE / "sweeps" / "worker.py"), address=str(address), modules=(), parent=0
    ).replace("parent=0", "parent=__import__('os').getppid()")
    shell = subprocess.Popen(
        ["bash", "-c", '"$@" & echo $!; read -r _', "-", sys.executable, "-c", code],
        cwd=probe_folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    server = int(shell.stdout.readline())
    until(address.exists)
    waiting = client(address, WAIT, tmp_path / "go")
    until(lambda: children(server) and children(children(server)[0]))
    shell.kill()
    shell.wait()
    until(lambda: not address.exists())
    (tmp_path / "go").write_text("")
    assert waiting.wait(timeout=100) == 0
    until(lambda: not alive(server))
