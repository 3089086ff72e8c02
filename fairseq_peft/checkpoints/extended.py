"""A checkpoint whose dictionary has more words: rows of the embedding for them.

dict.txt comes first in a dictionary; languages and ``<mask>``, which a task adds, come behind it.
So new rows stand between the two, and each word keeps its own row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from fairseq_peft.checkpoints import file as checkpoint_file
from fairseq_peft.checkpoints import slim
from fairseq_peft.errors import InputError

#: The tensors with a row a word, by the ends of their names.
PER_WORD = (
    *("embed_tokens.weight", "output_projection.weight"),
    *("lm_head.weight", "lm_head.bias"),
)
#: Rows of ``<s>``, ``<pad>``, ``</s>`` and ``<unk>``, which are no words.
NUM_SPECIALS = 4


def languages_of(task: dict) -> list[str]:
    """The languages that a task of the flags ``task`` adds to its dictionary, in the order of their
    rows; none where it names none."""
    given = task.get("langs") or []
    return given.split(",") if isinstance(given, str) else list(given)


def extend(
    base: Path, words, new: Sequence[str], like: str | None = None, trust: bool = False
) -> tuple[dict, int]:
    """The checkpoint ``base`` with rows for the words ``new``, and the number of the first.

    Args:
        words: its dictionary, as dict.txt has it.
        like: the word whose rows the new ones start as; else they start as the mean of all words.
        trust: as ``slim.read`` takes it.

    Raises:
        InputError: a word is there already, or ``like`` is not, or the dictionary is not the
            base's.
    """
    known = [name for name in new if name in words]
    if known or len(set(new)) < len(new) or not all(new):
        what = f"{known[0]} is in the dictionary already" if known else "a token is named twice"
        raise InputError(f"--tokens {','.join(new)}: {what}. Name new ones, each once.")
    if any(name.split() != [name] for name in new):
        raise InputError(
            f"--tokens {','.join(new)}: a token of fairseq's has no spaces. Rename it."
        )
    if like is not None and like not in words:
        raise InputError(
            f"--like {like}: the dictionary has no such token. Name one that is there."
        )
    state = slim.read(str(base), trust=trust)
    languages = languages_of(checkpoint_file.told(state, "task"))
    for name in new:
        language = re.sub(r"^(__|\[)?(.*?)(__|\])?$", r"\2", name)
        if language in languages:
            raise InputError(
                f"--tokens {','.join(new)}: {base} has a row for {name}, for its task adds the "
                f"language {language} to the dictionary. Name new tokens; --peft-train-tokens "
                "trains old ones, too."
            )
    tables = {n: t for n, t in state["model"].items() if n.endswith(PER_WORD)}
    sizes = {len(table) for table in tables.values()}
    if len(sizes) != 1:
        raise InputError(
            f"{base} has tables of {', '.join(map(str, sorted(sizes))) or 'no'} rows, and tokens "
            "are added to models with one dictionary. Give such a base."
        )
    (num_rows,) = sizes
    first = len(words)
    if first > num_rows:
        raise InputError(
            f"The dictionary has {first} rows, {base} {num_rows}. Give its own dictionary (--dict)."
        )
    row = None if like is None else words.index(like)

    def extended(table):
        values = table[NUM_SPECIALS:first].double()
        start = values.mean(0) if row is None else table[row].double()
        rows = start.expand(len(new), *start.shape).to(table.dtype)
        return torch.cat([table[:first], rows, table[first:]])

    weights = {n: extended(t) if n in tables else t for n, t in state["model"].items()}
    return {**state, "model": weights, "last_optimizer_state": None}, first
