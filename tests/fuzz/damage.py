"""What happens to files: bytes that are lost, added or exchanged, and JSON with other values."""

from __future__ import annotations

import copy
import gzip
import json
import lzma
import math

from hypothesis import strategies as st

#: Values that some JSON has where another is expected.
ODD = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, math.nan, math.inf),
    *("", " ", "x", "1", "nan", "lora", "\n", "\x00", "\x1b[2J", "\ud800", "é", "../x", "x" * 300),
    *([], {}, [None], [[]], [{}], {"": None}, {"x": 1}, ["a", "a"]),
)
#: Pieces that mean something to one reader or another.
PIECES = (
    *(
        b"\n",
        b"\r\n",
        b"\r",
        b"\t",
        b" ",
        b",",
        b";",
        b'"',
        b'""',
        b"|",
        b"\\",
        b"#",
        b":",
        b"\x00",
    ),
    *(b"\x00", b"{", b"}", b"[", b"]", b"null", b"NaN", b"-1", b"1e999", b"9" * 5000, b"[" * 2000),
    *(b'{"a":' * 2000, b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xc2\x85", b"\x0b"),
    *(
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\x00\x00\xfe\xff",
        b"\x1f\x8b",
        b"\xfd7zXZ\x00",
        b"PK\x03\x04",
    ),
    *(
        b"PK\x03\x04",
        b"<unk>",
        b"</s>",
        b"madeupword0000",
        b" #fairseq:overwrite",
        b"\\ud800",
        b"_",
        b"0x1",
    ),
)


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """``content`` with up to six pieces taken out, put in or exchanged."""
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from((0, 0, 1, 2, 4, 30, len(content))))
        piece = draw(
            st.one_of(st.just(b""), st.sampled_from(PIECES), st.binary(min_size=1, max_size=8))
        )
        content = content[:start] + piece + content[start + length :]
    return content


@st.composite
def packed(draw, content: bytes) -> bytes:
    """``content``, as it is or compressed."""
    pack = draw(st.sampled_from((bytes, bytes, gzip.compress, lzma.compress)))
    return pack(content)


@st.composite
def altered(draw, value):
    """A JSON value with up to four of its places exchanged or taken out."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(0, 4))):
        places = list(_places(value))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        what = draw(st.integers(0, 5))
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[draw(st.sampled_from([*holder, "x", ""]))] = holder.pop(key)
        elif what == 2:
            holder[key] = copy.deepcopy(draw(st.sampled_from([h[k] for h, k in places])))
        else:
            other = draw(st.one_of(st.sampled_from(ODD), st.integers(), st.floats()))
            holder[key] = copy.deepcopy(other)
    return value


def as_json(value) -> bytes:
    return json.dumps(value).encode()


@st.composite
def spoiled_json(draw, value) -> bytes:
    """The text of a JSON value that was altered, or damaged."""
    text = as_json(draw(altered(value)))
    return draw(damaged(text)) if draw(st.booleans()) else text


@st.composite
def one_spoiled(draw, files: dict):
    """``files`` (name -> content) with one or two of them damaged, or missing."""
    files = dict(files)
    for name in draw(st.lists(st.sampled_from(sorted(files)), max_size=2, unique=True)):
        content = draw(st.one_of(st.none(), damaged(files[name])))
        if content is None:
            del files[name]
        else:
            files[name] = content
    return files


def _places(value):
    """(what holds it, key) of each value within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield value, key
        if isinstance(item, (dict, list)):
            yield from _places(item)
