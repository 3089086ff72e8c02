"""Lines of text that are hard to cut alike: scripts, accents, emoji, control characters, spaces of
every kind, the names of special tokens."""

from __future__ import annotations

import random

#: Words, by script.
WORDS = {
    "latin": "le déjà Œuvre naïve Zürich señor don't I'll you're it's THE 3.14 1,000 C++ l'été",
    "more latin": "façade coöperate garçon e\u0301te\u0301 Straße Łódź İstanbul quick ﬁn ½ ①",
    "cyrillic": "привет мир Ёлка йога объём Київ їжак",
    "greek": "Καλημέρα κόσμε άνθρωπος Ώρα ΐ ς",
    "arabic": "مرحبا بالعالم اللُّغَةُ العربيّة ١٢٣",
    "chinese": "你好 世界 我爱北京天安门 日本語 カタカナ 한국어 𠮷野家",
    "emoji": "😀 👩\u200d👩\u200d👧 🇫🇷 ❤\ufe0f 👍🏽",
    "control": "\x01 \x07 \x1b \x7f \x80 \x9f \u200b \u200d \ufeff \u00ad \ufffd \ufffe \ue000",
    "names": "[unused1] ##ing @@ a@@ \u2581 <|endoftext|> madeupword0000 13",
}
#: Names of special tokens, which some libraries take for the tokens themselves.
SPECIAL = "<s> </s> <unk> <pad> <mask> [MASK] [CLS] [UNK] [SEP] [PAD]"
SPACES = [" ", "  ", "\t", "\u00a0", "\u2009", "\u3000", "\u1680", " \t "]
MARKS = ".,;:!?…»«-—'\"()/"


def lines(count: int = 1000, seed: int = 1, special: bool = True) -> list[str]:
    """Lines of a few words each, most of one script; ``special``: with names of tokens."""
    rng = random.Random(seed)
    pools = [words.split(" ") for words in WORDS.values()]
    pools += [SPECIAL.split(" ")] if special else []
    found = []
    for _ in range(count):
        own, line = rng.choice(pools), rng.choice(["", "", "", *SPACES])
        for _ in range(rng.randint(1, 14)):
            word = rng.choice(own if rng.random() < 0.7 else rng.choice(pools))
            word += rng.choice(MARKS) if rng.random() < 0.15 else ""
            line += word + (" " if rng.random() < 0.85 else rng.choice(["", *SPACES]))
        found.append(line)
    return found
