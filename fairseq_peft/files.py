"""Files that are there whole or not at all, and JSON that may be anybody's."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

#: What the disk says where it takes no more; Python does not say of which file.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: What torch's own writer says of a file that it cannot open or go on with.
_TORCH = re.compile("inline_container|iostream error|cannot be opened")


@contextlib.contextmanager
def naming(path: Path | str, temporary: Path) -> Iterator[None]:
    """Within it, what writes ``path`` by way of ``temporary``, a file or a folder, and fails,
    raises an ``OSError`` with the name of what was to be there.

    Python names nothing where a write fails, the source where a copy does, and ``temporary`` where
    that cannot be opened; torch raises a ``RuntimeError``.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        named = _named(error, Path(path), temporary)
        if named is None:
            raise
        raise named from error


def _named(error, path, temporary):
    """The ``OSError`` for ``naming``; None where ``error`` is not about writing there."""
    reason = error
    while isinstance(reason, RuntimeError):
        reason = reason.__context__  # what Python said to torch, which it puts its own on top of
    if isinstance(reason, OSError):
        where = reason.filename if reason.filename2 is None else reason.filename2
        if where is None and reason.errno in _NO_ROOM:
            return OSError(reason.errno, reason.strerror, str(path))
        if isinstance(where, (str, Path)):
            there = Path(where)
            if there == temporary or temporary in there.parents:
                name = path / there.relative_to(temporary)
                return OSError(reason.errno, reason.strerror, str(name))
        if reason is error:
            return None
    if not _TORCH.search(str(error)):
        return None
    code, text = errno.EIO, str(error).splitlines()[0].rstrip(".") + "; perhaps the disk is full"
    if shutil.disk_usage(path.parent).free < 2**16:
        code, text = errno.ENOSPC, os.strerror(errno.ENOSPC)
    return OSError(code, text, str(path))


@contextlib.contextmanager
def whole(path: Path | str) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; moved there, flushed, if the block succeeds.

    If the block raises, the temporary file is removed and ``path`` stays as it was. Where ``path``
    is a link, the file that it leads to is meant; a pipe or a device is written to as it is.

    Raises:
        OSError: it cannot be written; it names ``path`` (``naming``).
    """
    mode = os.stat(path).st_mode if os.path.exists(path) else stat.S_IFREG
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        yield Path(path)
        return
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path, temporary):
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def add_line(path: Path | str, line: str) -> None:
    """Append a line to a file: all of it, or, where the disk is full, nothing."""
    data = line.encode("utf-8") + b"\n"
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        if file.write(data) != len(data):
            file.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def json_of(text: bytes | str, each_key_once: bool = False):
    """The JSON value in ``text``.

    Args:
        each_key_once: refuse an object that has a key twice; Python takes the last.

    Raises:
        ValueError: it is none, or none that Python reads: too deep, or a number of 5,000 digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_each_once if each_key_once else None)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _each_once(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"it has the key {twice[:40]!r} twice")
    return found


def is_utf8(path: Path | str) -> bool:
    """Whether a path can be written in UTF-8, as TensorBoard and torch's maps need it."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def json_text(value, **options) -> str:
    """``value`` as JSON that UTF-8 can hold: letters as they are, or, where there is half a
    surrogate pair, all beyond ASCII escaped. A path has such for each byte that is no UTF-8.

    Args:
        options: of ``json.dumps``.
    """
    text = json.dumps(value, ensure_ascii=False, **options)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, **options)
    return text


def remove_leftovers(folder: Path | str, *names: str) -> None:
    """Remove what processes that were killed within ``whole`` have left of the files ``names``,
    patterns as of ``glob``.

    Only where nobody else writes them: a file that is just being written would go, too.
    """
    for name in names:
        for path in Path(folder).glob(f".{name}.*.tmp"):
            path.unlink(missing_ok=True)


def user_cache() -> Path:
    """Where what can be made anew is kept for this user, from run to run; it may not exist yet."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(folder) / "fairseq_peft"
