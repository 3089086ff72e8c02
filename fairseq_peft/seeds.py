"""Private random streams, so that what one part draws never shifts another part's numbers."""

from __future__ import annotations

import hashlib


def stream_seed(seed: int, *names) -> int:
    """A 63-bit seed that belongs to ``seed`` and to ``names`` alone, the same on every machine."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
