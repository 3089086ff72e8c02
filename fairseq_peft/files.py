"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path | str) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; moved there, flushed, if the block succeeds.

    If the block raises, the temporary file is removed and ``path`` stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path | str, *names: str) -> None:
    """Remove what processes that were killed within ``whole`` have left of the files ``names``,
    patterns as of ``glob``.

    Only where nobody else writes them: a file that is just being written would go, too.
    """
    for name in names:
        for path in Path(folder).glob(f".{name}.*.tmp"):
            path.unlink(missing_ok=True)
