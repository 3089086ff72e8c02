"""Which modules a user's words mean: names in, names out; no torch.

Names are dotted paths below the family's root: ``layers.0.self_attn.q_proj``, ``embed_tokens``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from fairseq_peft.errors import InputError

ALL_LINEAR = "all-linear"
#: The list of layers goes by other names in models that are not fairseq's: h in GPT-2, block in T5.
_LAYER = re.compile(r"^(?:(\w+)\.)?(?:layers|h|block)\.(\d+)\.")
STACKS = ("encoder", "decoder")
_PATTERN = re.compile(r"[\\^$*+?()\[\]{}|]")


def split(text: str) -> list[str]:
    """``"q_proj, v_proj"`` as a list, in order and without repeats."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def layer_of(name: str) -> int | None:
    """The layer that ``name`` is in, None outside the layers; those of an encoder and of a decoder
    (``encoder.layers.0.``, ``decoder.layers.0.``) are numbered alike."""
    place = _place_of(name)
    return place[1] if place else None


def _place_of(name: str) -> tuple[str, int] | None:
    """The stack, "" where a model has one, and the layer that ``name`` is in; None outside."""
    found = _LAYER.match(name)
    return (found[1] or "", int(found[2])) if found else None


def hits(name: str, target: str) -> bool:
    """Whether ``target`` means ``name``: the end of it (``q_proj``, ``self_attn.q_proj``), with the
    stack in front where there are two (``decoder.encoder_attn.q_proj``), or, with one of
    ``\\ ^ $ * + ? ( ) [ ] { } |`` in it, a regular expression for all of it; ``all-linear`` means
    all that is in a layer."""
    if target == ALL_LINEAR:
        return layer_of(name) is not None
    if _PATTERN.search(target):
        return re.fullmatch(target, name) is not None
    if name == target or name.endswith("." + target):
        return True
    stack, _, rest = target.partition(".")
    return stack in STACKS and name.startswith(stack + ".") and hits(name[len(stack) + 1 :], rest)


def select(
    names: Iterable[str], targets: str, layers: str = "", flag: str = "--peft-targets"
) -> list[str]:
    """The ``names`` that ``targets`` means, in their order.

    Args:
        names: linear maps and embeddings of the model.
        targets: comma-separated ends of names, ``all-linear`` among them for every linear map of
            every layer, or one regular expression for whole names.
        layers: layers to choose from, ``0-2,5``, of one stack ``decoder.0-2``; empty for all.
        flag: what the user typed ``targets`` behind.

    Raises:
        InputError: a target means nothing here, or ``layers`` is no list of layers.
    """
    names = list(names)
    known = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    example = "q_proj,v_proj" if {"q_proj", "v_proj"} <= set(known) else known[0]
    chosen = parse_layers(layers, names) if layers else None

    def offered(name):
        return chosen is None or _place_of(name) in chosen

    # A regular expression may hold commas.
    wanted = [targets] if _PATTERN.search(targets) else split(targets)
    for target in wanted or [targets]:
        try:
            matched = [name for name in names if hits(name, target)] if target else []
        except re.error as error:
            raise InputError(
                f"{flag} {target!r} is no regular expression ({error}). Give names such as "
                f"q_proj,v_proj, {ALL_LINEAR}, or an expression for whole names such as "
                r"'layers\.[01]\..*_proj'."
            ) from error
        if not matched:
            raise InputError(
                f"{flag} {target!r} matches no module. Modules here: {', '.join(known)}. "
                f"Try {example}, {ALL_LINEAR}, or an expression for whole names such as "
                r"'layers\.0\..*'."
            )
        if not any(offered(name) for name in matched):
            raise InputError(
                f"{flag} {target!r} matches no module of the layers {layers}. Give other layers, "
                "or none."
            )
    return [name for name in names if offered(name) and any(hits(name, t) for t in wanted)]


def parse_layers(text: str, names: Iterable[str]) -> set[tuple[str, int]]:
    """Stack and layer of all that ``text`` means: of ``"0-2,5"`` these layers of every stack that
    has them, of ``"decoder.0-2"`` those of one. The stack is "" where a model has one.

    Raises:
        InputError: it is no such list, or names a layer that no one of ``names`` is in.
    """
    there = {_place_of(name) for name in names} - {None}
    chosen = set()
    for part in split(text):
        found = re.fullmatch(rf"(?:({'|'.join(STACKS)})\.)?(\d+)(?:-(\d+))?", part)
        if not found:
            raise InputError(
                f"layers {text!r}: {part!r} is neither a layer nor a range. Layers are counted "
                "from 0: give such as 0-2,5, or decoder.0-2 of one stack."
            )
        stack, first, last = found.groups()
        for layer in range(int(first), int(last or first) + 1):
            meant = {place for place in there if stack in (None, place[0]) and place[1] == layer}
            if not meant:
                raise _no_layer(text, f"{stack}.{layer}" if stack else layer, there)
            chosen |= meant
    if not chosen:
        raise _no_layer(text, repr(text), there)
    return chosen


def _no_layer(text, layer, there):
    last = {stack: max(n for s, n in there if s == stack) for stack, _ in sorted(there)[::-1]}
    known = ", ".join(f"0 to {n} ({stack})" if stack else f"0 to {n}" for stack, n in last.items())
    return InputError(
        f"layers {text!r}: there is no layer {layer}. This model has the layers {known}."
    )


def by_pattern(names: Iterable[str], text: str, flag: str, kind: type, default) -> dict:
    """Name -> number, as ``"layers.0.self_attn.q_proj=4,fc1=16"`` says: the first pattern that
    means a name decides, and ``default`` where none does.

    Raises:
        InputError: it is no such list, or a pattern decides for no name.
    """
    names = list(names)
    numbers = _parse_patterns(text, flag, kind)
    first = {name: next((p for p in numbers if hits(name, p)), None) for name in names}
    for pattern in numbers:
        if pattern not in first.values():
            ends = dict.fromkeys(name.rpartition(".")[2] for name in names)
            raise InputError(
                f"{flag} {pattern}={numbers[pattern]} would be ignored: it fits none of what is "
                f"adapted ({', '.join(ends)}), or an earlier pattern comes first. Leave it out, or "
                "put it first."
            )
    return {name: numbers.get(pattern, default) for name, pattern in first.items()}


def _parse_patterns(text, flag, kind):
    """Pattern -> positive number."""
    numbers = {}
    for part in split(text):
        pattern, _, value = part.rpartition("=")
        try:
            number = kind(value)
            re.compile(pattern)
        except (ValueError, re.error):
            number = 0
        if not pattern or not 0 < number < math.inf:
            raise InputError(
                f"{flag} {part!r} is no pair of a name, or a regular expression without commas, "
                f"and a positive {'integer' if kind is int else 'number'}: give such as "
                "fc1=16,v_proj=4."
            )
        if pattern in numbers:
            raise InputError(f"{flag} {text!r} names {pattern} twice. Name it once.")
        numbers[pattern] = number
    return numbers
