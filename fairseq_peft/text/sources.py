"""Files of text as lines of UTF-8: .gz and .xz are unpacked, UTF-16 and UTF-32 are decoded.

What a file is, its first bytes say, not its name. What cannot be read as text is refused by name.
"""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fairseq_peft.errors import InputError

BOM = codecs.BOM_UTF8
PACKED = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\x00": lzma.open}
#: Endings that may follow the ending of a text file.
PACKED_SUFFIXES = (".gz", ".xz")
REFUSED = {
    b"PK\x03\x04": "a .zip archive, or a table of Excel (.xlsx)",
    b"BZh91AY": "a .bz2 file",
    b"\x28\xb5\x2f\xfd": "a .zst file",
    b"PAR1": "a .parquet file",
}
#: UTF-32 first: in little-endian order it begins as UTF-16 does.
WIDE = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def named(given: Iterable[str], what: str, name_of: Callable[[Path], str]) -> dict[str, Path]:
    """Name -> file of ``[NAME=]FILE`` words; a file that is called so comes first.

    Args:
        what: several of these files.
        name_of: the name of a file to which none is given.

    Raises:
        InputError: two have the same name, or a word is a name alone.
    """
    found = {}
    for word in given:
        name, sign, path = word.partition("=")
        if not sign or os.path.exists(word):
            name, path = "", word
        if not path:
            raise InputError(f"{word!r} has no file behind its name. Give NAME=FILE.")
        name = name or name_of(Path(path))
        if name in found:
            raise InputError(f"Two {what} are named {name}. Name one: OTHER={path}.")
        found[name] = Path(path)
    return found


def lines(file, name: str) -> Iterator[bytes]:
    """The lines of an open file of bytes, with their LF, in UTF-8 unless the file is damaged.

    A line ends at LF. Lines come as they are read: a pipe is answered line by line. What has no
    byte order mark of UTF-16 or UTF-32 is passed on as it is.

    Raises:
        InputError: the file is no text, or cut short.
    """
    try:
        yield from _lines(file, name)
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise InputError(
            f"{name} is a damaged .gz or .xz file ({error}). Make or copy it again."
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} begins as {error.encoding.upper()} text does, and is none ({error.reason}). "
            "Convert it to UTF-8."
        ) from None


def _lines(file, name):
    head = _first_bytes(file)
    for magic, unpack in PACKED.items():
        if head.startswith(magic):
            file = unpack(file)
            head = _first_bytes(file)
            break
    for magic, kind in REFUSED.items():
        if head.startswith(magic):
            raise InputError(f"{name} is {kind}. Give text: unpack it, or save it as .csv (UTF-8).")
    for mark, encoding in WIDE.items():
        if head.startswith(mark):
            with io.TextIOWrapper(file, encoding, newline="\n") as decoded:
                for line in decoded:
                    yield line.encode()
            return
    for first, name_of in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        if len(head) >= 4 and not any(head[first::2]) and all(head[1 - first :: 2]):
            raise InputError(
                f"{name} looks like UTF-16 without a byte order mark. Convert it: "
                f"iconv -f {name_of} -t UTF-8."
            )
    yield from file


def _first_bytes(file) -> bytes:
    return file.peek(8)[:8]
