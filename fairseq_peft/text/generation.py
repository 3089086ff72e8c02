"""fairseq's flags of generation, as ``fairseq-peft generate`` and ``Generator`` take them, and as a
run keeps them in its adapter folder (``--generation '{"beam": 4}'``)."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from fairseq_peft.errors import InputError
from fairseq_peft.files import json_of

#: Name -> type, help.
SEARCH = {
    "beam": (int, "beams (5; 1 with --sampling)"),
    "lenpen": (float, "length penalty: below 1 favours short texts (1)"),
    "unkpen": (float, "penalty for the unknown word: below 0 more of them (0)"),
    "max_len_a": (float, "a of the longest answer: a times the source's length, plus b (0)"),
    "max_len_b": (int, "b of it (200, or --max-answer-tokens of the training run)"),
    "min_len": (int, "shortest (1, or 0 for models of Hugging Face's)"),
    "no_repeat_ngram_size": (int, "no n words in a row come twice (0: they may)"),
    "temperature": (float, "above 1 flattens what is likely, 0.01 or more (1)"),
    "sampling": (bool, "draw words, search no likeliest (off)"),
    "sampling_topk": (int, "with --sampling: from the k likeliest alone"),
    "sampling_topp": (float, "with --sampling: from the likeliest that make up this probability"),
}
#: Name -> least, most. A temperature divides logits, which would overflow in fp16 below it.
RANGES = {
    "temperature": (0.01, 1000),
    "lenpen": (-10, 10),
    "unkpen": (-1e6, 1e6),
    "max_len_a": (0, 1e6),
}
#: Of tasks that know several languages: flags of theirs that choose the language tokens.
LANGUAGES = ("source_lang", "target_lang")


def check_each(given: Mapping[str, Any]) -> None:
    """Raise InputError where one is no flag of generation, or out of its range."""
    unknown = sorted(given.keys() - set(SEARCH))
    if unknown:
        raise InputError(f"{unknown[0]!r} is no flag of generation. There are {', '.join(SEARCH)}.")
    for name, value in given.items():
        _check_kind(name, value, SEARCH[name][0])
    for name, least in (("beam", 1), ("min_len", 0), ("max_len_b", 1), ("no_repeat_ngram_size", 0)):
        if given.get(name, least) < least:
            raise InputError(f"{name} {given[name]}: give {least} or more.")
    for name, (least, most) in RANGES.items():
        if not least <= given.get(name, 1) <= most:  # not a number, too
            raise InputError(f"{name} {given[name]}: give a number from {least:g} to {most:g}.")
    for name in ("sampling_topk", "sampling_topp"):
        if not given.get(name, 1) > 0:
            raise InputError(f"{name} {given[name]}: give more than 0.")
    if given.get("sampling_topp", 1) > 1:
        raise InputError(f"sampling_topp {given['sampling_topp']}: give 1 or less.")


def _check_kind(name, value, kind):
    """Raise InputError where a flag has a value of another kind than ``kind``."""
    takes = {int: Integral, float: Real, bool: bool}.get(kind, kind)  # numpy's numbers, too
    if not isinstance(value, takes) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{name} is {value!r}, expected {kind.__name__}.")


def check(given: Mapping[str, Any]) -> None:
    """Raise InputError where flags of generation are unknown, out of range, or would be ignored."""
    check_each(given)
    for name in ("sampling_topk", "sampling_topp"):
        if name in given and not given.get("sampling"):
            raise InputError(f"{name} would be ignored without sampling. Leave it out, or sample.")
    if not given.get("max_len_a") and given.get("min_len", 0) > given.get("max_len_b", 200):
        raise InputError(
            f"min_len {given['min_len']} is more than max_len_b {given.get('max_len_b', 200)}. "
            "Give a longer one."
        )


def check_nbest(nbest: int, search: Mapping[str, Any]) -> None:
    """Raise InputError unless ``search``, which is as ``combined`` gives it, finds so many."""
    beam = search.get("beam", 5)
    if not 1 <= nbest <= beam:
        raise InputError(f"nbest {nbest}: give at most the number of beams, {beam}, and 1 or more.")


def combined(kept: Mapping[str, Any], given: Mapping[str, Any]) -> dict:
    """What is searched with: ``given``; where that says nothing, what an adapter folder has kept;
    one beam where words are drawn and nobody says how many.

    Raises:
        InputError: as ``check``.
    """
    if given.get("sampling", kept.get("sampling")) != kept.get("sampling"):
        # Kept for the other way of finding words.
        kept = {n: v for n, v in kept.items() if n != "beam" and not n.startswith("sampling")}
    found = {**kept, **given}
    check(found)
    return {"beam": 1, **found} if found.get("sampling") else found


def parse(text: str) -> dict:
    """What ``--generation`` says: the flags of ``SEARCH`` and ``LANGUAGES`` as a JSON object.

    Raises:
        InputError: it is none, or as ``check``.
    """
    example = 'Give such as {"beam": 4, "lenpen": 0.6}.'
    try:
        given = json_of(text)
    except ValueError as error:
        raise InputError(f"--generation {text} is no JSON ({error}). {example}") from None
    if not isinstance(given, dict):
        raise InputError(f"--generation {text} is no JSON object. {example}")
    try:
        for name in given.keys() & set(LANGUAGES):
            _check_kind(name, given[name], str)
        check(search_of(given))
    except InputError as error:
        raise InputError(f"--generation: {error} {example}") from None
    return given


def search_of(kept: Mapping[str, Any]) -> dict:
    """``kept`` without languages."""
    return {name: value for name, value in kept.items() if name not in LANGUAGES}
