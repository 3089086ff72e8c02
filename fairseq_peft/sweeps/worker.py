"""One start for many runs: a process that has imported everything and forks a child for each.

``fairseq-train`` spends seconds on imports before its first update. The worker imports the same
modules once and waits at a Unix socket. Every request becomes a fork of that fresh state, so no run
sees anything of another. What a process of its own would have, the child gets from its client:
argv, working directory, environment, umask, and the three standard streams themselves, passed as
file descriptors. Nothing is computed before the fork: no pool of threads, no CUDA context.

What a program reads only while it starts cannot be handed over later. A request whose environment
differs from the worker's there (``READ_AT_START``), or that comes from another Python, is declined;
``Declined`` tells the client to start a process of its own.

    client -- socket --> handler (a fork that watches client and run) --> run (a fork, own group)

The protocol is a line of JSON each way: the request (with the descriptors beside it); then the exit
status of the run (negative: the signal that killed it), or why it is declined. A client that goes
away takes its run with it. Whoever may open the socket may run code: it is mode 0600.

This file needs the standard library only and imports nothing of the package, so that the tests can
serve without the plugin (tests/support/fork_server.py).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
import warnings

#: Program -> its module, whose ``cli_main`` runs it.
PROGRAMS = {
    name: f"fairseq_cli.{name.replace('-', '_')}"
    for name in ("train", "validate", "generate", "hydra-train")
}
#: The same for a worker that has imported the plugin.
PLUGIN_PROGRAMS = {**PROGRAMS, "sweep-members": "fairseq_peft.commands.sweep_members"}
#: What training imports when it gets there.
LATE = ("torch._dynamo", "torch.utils.tensorboard")
#: How the names of environment variables begin that are read while Python and its libraries start.
READ_AT_START = (
    *("PYTHON", "LD_", "DYLD_", "GLIBC_", "MALLOC_", "LC_", "LANG", "TZ", "LOGLEVEL"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_", "ATEN_", "NUMEXPR_"),
    *("TORCH", "PYTORCH_", "CUDA", "CUBLAS_", "NVIDIA_", "FAIRSEQ", "HYDRA_"),
)
#: How long a run whose client has gone may take to end by SIGTERM.
GRACE_S = 5


class Declined(Exception):
    """The worker does not take this run, or there is none: run it as a process of its own."""


class Lost(Exception):
    """The worker ended before it told what became of the run."""


# ---- The client ----------------------------------------------------------------------------------


def run(address: str, program: str, argv, cwd=None, environ=None, streams=(0, 1, 2)) -> int:
    """Run a program in a child of the worker at ``address``, and wait for it.

    Args:
        program: one of ``PROGRAMS``.
        argv: its arguments.
        cwd, environ: as ``subprocess`` takes them, of this process by default.
        streams: file descriptors that become its standard input, output and error.

    Returns:
        The exit status; negative, as in ``subprocess``, if a signal ended the run.

    Raises:
        Declined: nothing has run.
        Lost: the run may have begun.
    """
    environ = dict(os.environ if environ is None else environ)
    mask = os.umask(0o077)
    os.umask(mask)
    request = {
        "program": program,
        "argv": [str(word) for word in argv],
        "cwd": os.path.abspath(cwd or os.getcwd()),
        "environ": environ,
        "umask": mask,
        "start": _read_at_start(environ),
    }
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(address))
        except OSError as error:
            raise Declined(f"no worker answers at {address}: {error.strerror or error}") from error
        try:
            text = json.dumps(request).encode() + b"\n"
            sent = socket.send_fds(connection, [text[:4096]], list(streams))
            if text[sent:]:  # to send nothing is an error once the other side has answered
                connection.sendall(text[sent:])
            reply = json.loads(_read_line(connection))
        except (OSError, ValueError) as error:
            raise Lost(f"the worker at {address} ended before the run did") from error
    if "declined" in reply:
        raise Declined(reply["declined"])
    return reply["status"]


def _read_at_start(environ) -> dict:
    """What has to be the same in a worker and in a run it takes."""
    found = {name: value for name, value in environ.items() if name.startswith(READ_AT_START)}
    return {**found, "sys.executable": sys.executable}


def _read_line(connection, text=b"") -> bytes:
    while not text.endswith(b"\n"):
        more = connection.recv(1 << 16)
        if not more:
            raise OSError("the other side hung up")
        text += more
    return text


# ---- The worker ----------------------------------------------------------------------------------


def check_address(address: str) -> None:
    """Raise Declined where no worker can listen at ``address``, or none can run."""
    folder = os.path.dirname(os.path.abspath(address))
    for wrong, message in [
        # Windows has no fork; the system libraries of macOS do not survive one.
        (not sys.platform.startswith("linux"), f"A worker needs Linux, this is {sys.platform}."),
        (not os.path.isdir(folder), f"{folder} is not a folder. Make it, readable by you alone."),
        (os.path.exists(address), f"{address} exists. Give another ADDRESS, or delete it."),
        (len(os.fsencode(address)) > 100, f"{address} is too long for a socket. Set TMPDIR=/tmp."),
    ]:
        if wrong:
            raise Declined(message)


def serve(address: str, programs=PROGRAMS, modules=LATE, parent: int | None = None) -> None:
    """Import everything, open the socket, fork a handler for each connection.

    Returns after SIGTERM or SIGINT, whose runs it ends, or once ``parent`` has ended, with the
    last run.

    Args:
        address: path of the socket; it is there as soon as requests are taken.
        programs: program -> module.
        modules: what else to import first.
        parent: id of the process that started this one; None: no matter.
    """
    start = _read_at_start(os.environ)
    for module in (*programs.values(), *modules):
        try:
            importlib.import_module(module)
        except ImportError:
            if module not in LATE:
                raise
    _check_that_cuda_is_untouched()
    # Else the first collection in a child would write to, and so copy, every page it shares.
    gc.collect()
    gc.freeze()

    wakeup = _wakeup()
    before = {
        number: signal.signal(number, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
        # A script's background ignores Ctrl-C; the script ends us by SIGTERM.
        if signal.getsignal(number) != signal.SIG_IGN
    }

    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    listener.bind(f"{address}.new")
    os.umask(mask)
    listener.listen(64)
    os.rename(f"{address}.new", address)  # who sees it may connect
    handlers = set()
    try:
        while parent is None or os.getppid() == parent:
            ready, _, _ = select.select([listener, wakeup], [], [], None if parent is None else 1)
            if wakeup in ready:
                signals = os.read(wakeup, 4096)
                if signal.SIGTERM in signals or signal.SIGINT in signals:
                    for handler in handlers:
                        os.kill(handler, signal.SIGTERM)
                    break
                handlers -= _reap(handlers)
            if listener in ready:
                connection, _ = listener.accept()
                handler = fork()
                if handler == 0:
                    listener.close()
                    _handle(connection, programs, start, before)
                connection.close()
                handlers.add(handler)
    finally:
        listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address)
    for handler in handlers:
        os.waitpid(handler, 0)


def _wakeup() -> int:
    """A descriptor to wait on, from which the numbers of arriving signals can be read."""
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def _check_that_cuda_is_untouched():
    """A child of a process that has asked the CUDA driver anything cannot use it."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    probe = fork()
    if probe == 0:
        os._exit(bool(torch.cuda._is_in_bad_fork()))
    if os.waitpid(probe, 0)[1]:
        raise Declined("importing fairseq has initialised CUDA, which forked processes cannot use")


def fork() -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with warnings.catch_warnings():
        # Python 3.12 warns of threads: those of OpenBLAS, which stops them around a fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _reap(handlers) -> set:
    return {handler for handler in handlers if os.waitpid(handler, os.WNOHANG)[0]}


def _handle(connection, programs, start, before):
    """The handler: never returns. Serves one connection."""
    code = 1
    try:
        reply = _answer(connection, programs, start, before)
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps(reply).encode() + b"\n")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _answer(connection, programs, start, before) -> dict:
    wakeup = _wakeup()
    text, streams, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    try:
        request = json.loads(_read_line(connection, text))
    except OSError:
        return {}
    if request["program"] not in programs:
        return {"declined": f"this worker runs {', '.join(programs)}, not {request['program']}"}
    differ = sorted(
        name
        for name in {**start, **request["start"]}
        if start.get(name) != request["start"].get(name)
    )
    if differ:
        return {"declined": f"the worker was started with another {', '.join(differ)}"}

    child = fork()
    if child == 0:
        connection.close()
        _become(request, streams, programs, before)
    for descriptor in streams:
        os.close(descriptor)
    with contextlib.suppress(OSError):  # the child does the same; whoever comes first
        os.setpgid(child, child)
    watched, patience, told = [connection, wakeup], None, False
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if told:  # to end: so have the processes that the run had started
                _signal_group(child, signal.SIGKILL)
            return {"status": os.waitstatus_to_exitcode(status)}
        ready, _, _ = select.select(watched, [], [], patience)
        if not ready:
            _signal_group(child, signal.SIGKILL)
            patience = None
        end = wakeup in ready and signal.SIGTERM in os.read(wakeup, 4096)
        if end or connection in ready:  # the client says nothing more: it has gone
            watched, patience, told = [wakeup], GRACE_S, True
            _signal_group(child, signal.SIGTERM)


def _signal_group(group, number):
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _become(request, streams, programs, before):
    """The run: never returns. From here on this is the process that the client asked for."""
    code = 1
    try:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        for place, descriptor in enumerate(streams):
            os.dup2(descriptor, place)
            os.close(descriptor)
        sys.stdout.reconfigure(line_buffering=os.isatty(1))
        os.umask(request["umask"])
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environ"])
        module = sys.modules[programs[request["program"]]]
        # As under `python -m`; torch.multiprocessing.spawn imports __main__ again by its name.
        sys.modules["__main__"] = module
        sys.path[0] = request["cwd"]
        sys.argv = [module.__file__, *request["argv"]]
        code = _call(module.cli_main)
        # The end of the interpreter, but for the worker's own frames.
        threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _call(main) -> int:
    """Call ``main`` as the interpreter would: the exit status."""
    try:
        main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0
