"""Look for files that a reader neither reads nor refuses, for some minutes each.

    python tests/fuzz/run.py SECONDS [READER ...]

Half of the time as Hypothesis draws them, half with atheris, which goes on from those that have
reached code that none had before; without atheris, all of it by the first. A finding ends the
search in its reader, is printed, and is kept in .hypothesis, where the next search begins.
Files that were read before are not read again, and not counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parent)]

from hypothesis import HealthCheck, given, settings  # noqa: E402

#: What a process may have: of more, a file that asks for too much memory takes it from others.
MOST_BYTES = 6 << 30


class Files(dict):
    """name -> content, which is no page of bytes where a finding is printed."""

    def __repr__(self):
        told = {k: v if len(v) <= 2000 else f"{len(v)} bytes" for k, v in self.items()}
        return repr(told)


def load():
    """(atheris or None, the readers' module, whose package atheris watches)."""
    try:
        import atheris
    except ImportError:
        atheris, watching = None, contextlib.nullcontext()
    else:
        watching = atheris.instrument_imports(["fairseq_peft"], enable_loader_override=False)
    with watching, contextlib.redirect_stderr(io.StringIO()):  # a line a module
        import readers
    return atheris, readers


def search(name: str, seconds: int) -> None:
    """Ends with an exception, or another status than 0, where there is a finding."""
    atheris, readers = load()
    reader = readers.READERS[name]
    read_before = set()

    def test(max_examples):
        def read(files):
            digest = hashlib.sha256(repr(sorted(files.items())).encode()).digest()
            if digest not in read_before:
                readers.check(reader, files)
                read_before.add(digest)  # not if it raised: Hypothesis wants it to do so again

        read.__qualname__ = f"read_{name}"  # its place in .hypothesis
        return settings(
            max_examples=max_examples,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        )(given(reader.files.map(Files))(read))

    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    logging.disable(logging.INFO)
    sys.excepthook = sys.__excepthook__  # the plugin's own would show a sentence only
    end = time.monotonic() + (seconds if atheris is None else seconds / 2)
    while time.monotonic() < end:
        test(100)()  # the first time, what was found before comes first
    print(f"Hypothesis: {len(read_before)} files, none twice", flush=True)
    if atheris is None:
        return
    end = time.monotonic() + seconds / 2
    fuzz = test(100).hypothesis.fuzz_one_input
    seeds = Path(tempfile.mkdtemp())
    for number in range(100):  # only the bytes that make the files: others change nothing
        used = fuzz(random.Random(number).randbytes(500))
        (seeds / str(number)).write_bytes(used or b"")
    read_before.clear()

    def fuzz_or_end(content):
        if time.monotonic() > end:
            print(f"atheris: {len(read_before)} files, none twice", flush=True)
            shutil.rmtree(seeds)
            os._exit(0)
        return fuzz(content)

    atheris.Setup(
        [sys.argv[0], str(seeds), "-len_control=0", "-max_len=500", "-timeout=60"], fuzz_or_end
    )
    atheris.Fuzz()


def main() -> int:
    if sys.argv[1] == "one":
        search(sys.argv[2], int(sys.argv[3]))
        return 0
    seconds, *names = sys.argv[1:]
    if os.access("/dev/shm", os.W_OK):  # a folder on a disk takes longer than reading what is in it
        os.environ["TMPDIR"] = "/dev/shm"
    failed = []
    for name in names or load()[1].READERS:
        print(f"== {name}, {seconds} s", flush=True)
        status = subprocess.call([sys.executable, __file__, "one", name, seconds])
        if status:
            print(f"status {status}", flush=True)
            failed.append(name)
    print(f"findings in: {', '.join(failed)}" if failed else "no findings")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
