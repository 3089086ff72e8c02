"""How much memory this process holds, and the most that it has held.

The standard library only: it runs under fairseq's Python and under Hugging Face's."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


def resident_bytes() -> int:
    """Bytes of this process that are in memory now; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def peak_bytes() -> int:
    """The most that this process has held, in bytes. Linux's own figure: the other one counts what
    the process that started it held at that moment."""
    try:
        (line,) = re.findall(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
        return int(line) * 1024
    except (OSError, ValueError):
        unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB, macOS in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
