"""Counts of parameters as sums of terms, each with the formula that a reader can check."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from fairseq_peft.errors import InputError

_LAYER = re.compile(r"\blayers\.\d+\.")


class Undefined(InputError):
    """An architecture has no such thing, so what depends on it has no count there."""


class Term(NamedTuple):
    """One line of a parameter count: ``formula`` evaluates to ``count``."""

    part: str
    formula: str
    count: int


@dataclass
class Count:
    """Parameter counts of an architecture, as terms."""

    terms: list[Term] = field(default_factory=list)

    def add(self, part: str, formula: str) -> None:
        """Add ``formula``, products and sums of integers such as ``4 x 512 x 512``."""
        self.terms.append(Term(part, formula, evaluate(formula)))

    def add_groups(self, part: str, formulas: dict[str, str]) -> None:
        """Add the formulas of modules by name, those of one kind and formula as one term."""
        groups = {}
        for name, formula in formulas.items():
            kind = (name.rpartition(".")[2], formula)
            groups[kind] = groups.get(kind, 0) + 1
        for (kind, formula), number in groups.items():
            self.add(f"{part} {kind}", f"{number} x {formula}")

    def add_tensors(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Add whole tensors by name: what two counts both name can then be told."""
        for name, shape in shapes.items():
            self.add(name, " x ".join(map(str, shape)))

    def by_kind(self) -> Count:
        """The same count, the terms that differ in nothing but the layer as one."""
        groups = {}
        for part, formula, _ in self.terms:
            kind = _LAYER.sub("", part)
            groups.setdefault((kind, formula, kind != part), []).append(part)
        count = Count()
        for (kind, formula, in_layers), parts in groups.items():
            count.add(kind, f"{len(parts)} x {formula}" if in_layers else formula)
        return count

    @property
    def total(self) -> int:
        return sum(term.count for term in self.terms)


class Section(NamedTuple):
    """A part of an architecture. ``title`` names the sum of it and all sections before it;
    ``details`` are terms to show that are no summands."""

    title: str
    count: Count
    details: tuple = ()


def tensors(linears, tables, norms, embed_dim, biases=True) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of an architecture.

    Args:
        linears: name -> (in, out).
        tables: name -> (rows, columns) of embeddings.
        norms: names of the norms, each of ``embed_dim`` numbers.
        biases: whether linear maps and norms have them.
    """
    shapes = {f"{name}.weight": shape for name, shape in tables.items()}
    for name, (rows, columns) in linears.items():
        shapes[f"{name}.weight"] = (columns, rows)
    shapes.update({f"{name}.weight": (embed_dim,) for name in norms})
    if biases:
        shapes.update({f"{name}.bias": (columns,) for name, (_, columns) in linears.items()})
        shapes.update({f"{name}.bias": (embed_dim,) for name in norms})
    return shapes


def evaluate(formula: str) -> int:
    """The value of a sum of products with ``x`` for times, such as ``(256 + 2) x 512``."""
    allowed = set("0123456789 +()x")
    if not set(formula) <= allowed:
        raise ValueError(f"not a formula of integers: {formula!r}")
    return eval(formula.replace("x", "*"), {"__builtins__": {}})  # noqa: S307, digits and + x ( ) only
