"""Folders whose content changes as a whole: all files of one version, or all of another."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fairseq_peft.files import naming

#: Files that file browsers leave in every folder that is looked at.
LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")


@contextlib.contextmanager
def replaced(folder: Path | str) -> Iterator[Path]:
    """A new folder to write files into, which takes the place of ``folder`` if the block succeeds.

    Its files are flushed to the disk before. A process that is killed at any moment leaves the
    old content or the new one, whole, where ``current`` finds it.

    Raises:
        OSError: a file cannot be written; it names that file as it would be in ``folder``.
    """
    folder = Path(os.path.realpath(folder))
    # Its own for each process: two that write one folder at once each move a whole one there.
    new, old = _beside(folder, f"new-{socket.gethostname()}-{os.getpid()}"), _beside(folder, "old")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if old.exists() and not folder.exists():  # killed between the two moves below
        os.rename(old, folder)
    for left in (new, old, *_left_by_the_dead(folder)):
        shutil.rmtree(left, ignore_errors=True)
    new.mkdir(exist_ok=True)  # an .nfs file may hold it back until its reader ends
    try:
        with naming(folder, new):
            yield new
            for path in (*new.rglob("*"), new):
                if not path.is_symlink() and (path.is_file() or path.is_dir()):
                    with contextlib.suppress(PermissionError):  # one that was kept
                        _flush(path)
        if not folder.exists():
            os.rename(new, folder)
        elif not _exchange(new, folder):
            os.rename(folder, old)
            os.rename(new, folder)
        _flush(folder.parent)
    finally:
        for left in (new, old) if folder.exists() else (new,):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def merged(folder: Path | str) -> Iterator[Path]:
    """A new folder to write files into, which come into ``folder``, all at once, if the block
    succeeds; what else is there stays. Processes that do this at one time wait for each other.

    Where ``folder`` cannot change its place, because it is a mount point, a process's own, or in a
    folder of somebody else's, they come one by one.

    Raises:
        OSError: as ``replaced``.
    """
    folder = Path(os.path.realpath(folder))
    if folder.is_dir() and not _can_move(folder):
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as build:
            new = Path(build)
            with naming(folder, new):
                yield new
            for path in sorted(new.iterdir()):
                os.replace(path, folder / path.name)
        return
    with contextlib.ExitStack() as after, replaced(folder) as new:
        yield new
        after.enter_context(_alone(folder.parent))
        _keep(folder, new)


def _can_move(folder):
    return not (
        os.path.ismount(folder)
        or Path.cwd().is_relative_to(folder)
        or not os.access(folder.parent, os.W_OK)
    )


@contextlib.contextmanager
def _alone(folder):
    """Within it, no other process is in this block for the same ``folder``, where there are such
    locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _keep(folder, new):
    """Put what ``folder`` has and ``new`` lacks into ``new``, which is to take its place: the same
    files by another link, where the file system has such, and copies elsewhere."""
    if not folder.is_dir():
        return
    shutil.copymode(folder, new)
    for path in folder.iterdir():
        there = new / path.name
        if os.path.lexists(there):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, there, symlinks=True, copy_function=_link)
        else:
            _link(path, there)


def current(folder: Path | str) -> Path:
    """Where the content of ``folder`` is: there, or, if a process was killed while it was moved,
    beside it."""
    folder = Path(os.path.realpath(folder))
    old = _beside(folder, "old")
    return old if old.is_dir() and not folder.exists() else folder


def is_litter(path: Path) -> bool:
    """Whether a file system or a file browser has put the file there."""
    return path.name in LITTER or path.name.startswith(("._", ".nfs"))


def walk(root: Path | str) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As ``os.walk``, in order, and into folders that links lead to, after all others. A folder
    comes once, whatever leads to it."""
    seen, starts = set(), [root]
    for start in starts:  # which grow
        for name, subfolders, files in os.walk(start):
            real = os.path.realpath(name)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            subfolders.sort()
            yield Path(name), subfolders, files
            paths = [os.path.join(name, subfolder) for subfolder in subfolders]
            starts += [path for path in paths if os.path.islink(path)]


def _link(path, there):
    try:
        os.link(path, there, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(path, there, follow_symlinks=False)


def _beside(folder, kind):
    return folder.with_name(f".{folder.name}.{kind}")


def _left_by_the_dead(folder):
    """What processes of this machine that were killed have left of a new ``folder``."""
    mark = f".{folder.name}.new-{socket.gethostname()}-"
    for path in folder.parent.iterdir():
        pid = path.name[len(mark) :]
        if path.name.startswith(mark) and pid.isdigit() and not _lives(int(pid)):
            yield path


def _lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _flush(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(a: Path, b: Path) -> bool:
    """Let two folders change names in one step; False where the system or file system cannot."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            done = library.renamex_np(os.fsencode(a), os.fsencode(b), 2)  # RENAME_SWAP
        else:
            here = -100  # AT_FDCWD; 2 is RENAME_EXCHANGE
            done = library.renameat2(here, os.fsencode(a), here, os.fsencode(b), 2)
    except (OSError, AttributeError, TypeError):
        return False
    if done == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(b))
