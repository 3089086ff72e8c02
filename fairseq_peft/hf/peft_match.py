"""Which modules the words of a config mean, here and in Hugging Face PEFT.

Names are written as short as they can be while they mean the same modules under the rules of their
side: ``query`` for all layers' queries, else whole names. PEFT's default for IA3, ``output.dense``,
is also the end of ``attention.output.dense``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from fairseq_peft.hf import peft_beside
from fairseq_peft.injection import surgery


def fits(name: str, end: str) -> bool:
    """PEFT's rule for an entry of ``target_modules``."""
    return name == end or name.endswith("." + end)


def fits_loosely(name: str, end: str) -> bool:
    """PEFT's rule for an entry of ``feedforward_modules``."""
    return name.endswith(end)


def fits_pattern(name: str, pattern: str) -> bool:
    """PEFT's rule for a key of ``rank_pattern`` and ``alpha_pattern``."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def our_end(name: str) -> str:
    return name.rpartition(".")[2]


def shortened(
    chosen: Iterable[str], names: Iterable[str], end: Callable, rule: Callable
) -> list[str]:
    """Ends of names that mean exactly ``chosen`` among ``names`` under ``rule``; whole names where
    there are none."""
    chosen = list(chosen)
    ends = list(dict.fromkeys(map(end, chosen)))
    meant = {name for name in names if any(rule(name, text) for text in ends)}
    return ends if meant == set(chosen) else chosen


def as_patterns(values: dict, default, end: Callable, rule: Callable) -> dict:
    """Pattern -> number, for the names in ``values`` (name -> number) that differ from
    ``default``."""
    found = {}
    for number in dict.fromkeys(values.values()):
        if number != default:
            chosen = [name for name in values if values[name] == number]
            found.update(dict.fromkeys(shortened(chosen, values, end, rule), number))
    return found


def places(model) -> dict[str, str]:
    """Our name below the root -> theirs, for what methods can be put on."""
    beside = peft_beside.of(model)
    ours = list(surgery.linears(model, model.family))
    if beside.has_embeddings:
        ours += surgery.embeddings(model, model.family)
    return {name: beside.to_hf(model.family.path(name)) for name in ours}
