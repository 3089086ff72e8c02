"""Look for files that a reader neither reads nor refuses, for some minutes each.

    python tests/fuzz/run.py SECONDS [READER ...]

Half of the time as Hypothesis draws them, half with atheris, which goes on from those that have
reached code that none had before; without atheris, all of it by the first. A finding ends the
search in its reader, is printed, and is kept in .hypothesis, where the next search begins.
"""

from __future__ import annotations

import contextlib
import io
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parent)]

from hypothesis import HealthCheck, given, settings  # noqa: E402


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

    def test(max_examples):
        def read(files):
            readers.check(reader, files)

        read.__qualname__ = f"read_{name}"  # its place in .hypothesis
        return settings(
            max_examples=max_examples,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        )(given(reader.files.map(Files))(read))

    sys.excepthook = sys.__excepthook__  # the plugin's own would show a sentence only
    end = time.monotonic() + (seconds if atheris is None else seconds / 2)
    num_read = 0
    while time.monotonic() < end:
        test(100)()  # the first time, what was found before comes first
        num_read += 100
    print(f"Hypothesis: {num_read} examples", flush=True)
    if atheris is not None:
        with tempfile.TemporaryDirectory() as seeds:  # of a length that makes a whole example
            for number in range(40):
                Path(seeds, str(number)).write_bytes(random.Random(number).randbytes(2000))
            how = [f"-max_total_time={seconds // 2}", "-len_control=0", "-max_len=4000"]
            atheris.Setup(
                [sys.argv[0], seeds, *how, "-timeout=60"], test(100).hypothesis.fuzz_one_input
            )
            atheris.Fuzz()  # which ends the process


def main() -> int:
    if sys.argv[1] == "one":
        search(sys.argv[2], int(sys.argv[3]))
        return 0
    seconds, *names = sys.argv[1:]
    from readers import READERS

    failed = []
    for name in names or READERS:
        print(f"== {name}, {seconds} s", flush=True)
        if subprocess.call([sys.executable, __file__, "one", name, seconds]):
            failed.append(name)
    print(f"findings in: {', '.join(failed)}" if failed else "no findings")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
