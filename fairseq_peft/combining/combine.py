"""Arithmetic on adapter folders of LoRA: one folder out of several, or the negation of one.

    combine([("runs/a/adapter", 0.5), ("runs/b/adapter", 0.5)], "both", how="svd")

Only what LoRA has learnt is combined (``arithmetic.py``). All the rest, such as labels and how
texts become tokens, is the first folder's; so is the head, unless a mean is asked for.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple, Optional, Union

import torch

from fairseq_peft import __version__
from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.combining import arithmetic
from fairseq_peft.combining.arithmetic import Update
from fairseq_peft.combining.terms import Term, check_choices, check_together, read
from fairseq_peft.errors import InputError
from fairseq_peft.methods.base import flag_name
from fairseq_peft.models.roberta import HEADS
from fairseq_peft.scores import CLASSES
from fairseq_peft.seeds import stream_seed

#: What the result has of the first folder's description; the last row of those that write text.
KEPT = (
    *("head", "labels", "input", "complete", "base", "kind", "dictionary"),
    *("task", "dictionaries", "tokenizer", "generation"),
)


class Combined(NamedTuple):
    """What was written.

    Attributes:
        ranks: module -> rank of its update.
        error: |found - sum| / |sum|, Frobenius norms over all updates; nan if the sum is zero.
        num_bytes: of the method's tensors; ``head_bytes`` of the head's.
    """

    ranks: dict[str, int]
    error: float
    num_bytes: int
    head_bytes: int


def combine(
    given: Sequence[tuple[Union[str, Path], float]],
    out: Union[str, Path],
    how: str = "cat",
    *,
    rank: Optional[int] = None,
    density: Optional[float] = None,
    seed: Optional[int] = None,
    head: str = "first",
) -> Combined:
    """Write the adapter folder ``out``: the weighted combination of LoRA folders of one base.

    Args:
        given: (folder, weight); the weight -1 alone negates.
        how: one of ``arithmetic.HOWS``.
        rank: of what ends with svd (the largest rank that a module has in the folders).
        density: share that ties and dare keep.
        seed: of dare's choice (1).
        head: ``first``, or ``mean``: of all heads, by weight.

    Raises:
        InputError: the folders cannot be combined so, or ``out`` cannot be written.
    """
    check_choices(how, rank, density, seed, head)
    terms = [read(folder, weight) for folder, weight in given]
    check_together(terms)
    first = terms[0].found
    if head == "mean" and first.is_text:
        raise InputError(
            f"--head mean would be ignored: {first.folder} writes text, and has no head. Leave it "
            "out."
        )
    updates, error = combine_updates(terms, how, rank, density, 1 if seed is None else seed)
    tensors = {}
    for name, update in updates.items():
        tensors[f"{terms[0].root}{name}.lora_A"] = update.a
        tensors[f"{terms[0].root}{name}.lora_B"] = update.b
    heads = first_head(terms) if head == "first" else mean_head(terms)
    origin = {"verb": "combine", "how": how, "rank": rank, "density": density, "seed": seed}
    origin.update(head=head, folders=[told(term) for term in terms])
    described = describe(terms, updates, origin, count(tensors))
    files = first.description["files"].keys() - {adapter_folder.TENSORS}
    copies = {name: first.folder / name for name in sorted(files)}
    adapter_folder.write(out, {**tensors, **heads}, described, copies)
    ranks = {name: len(update.a) for name, update in updates.items()}
    return Combined(ranks, error, size(tensors), size(heads))


def combine_updates(terms, how, rank, density, seed) -> tuple[dict[str, Update], float]:
    """Module -> its combined update, and how far all are from the weighted sum. A folder that has
    no update of a module adds nothing there."""
    updates, limits, wrong, whole = {}, {}, 0.0, 0.0
    for name in dict.fromkeys(name for term in terms for name in term.updates):
        having = [term for term in terms if name in term.updates]
        parts, weights = [t.updates[name] for t in having], [t.weight for t in having]
        ranks = [len(part.a) for part in parts]
        if how in arithmetic.OF_FACTORS and len(set(ranks)) > 1:
            raise InputError(
                f"--how {how} adds up factors, and those of {name} have the ranks "
                f"{', '.join(map(str, ranks))}. Give --how cat or svd, which take any ranks."
            )
        # What is thinned or trimmed has the rank of any matrix.
        most = [sum(ranks)] if how == "svd" else []
        limits[name] = min(parts[0].a.shape[1], len(parts[0].b), *most)
        own = min(rank or max(ranks), limits[name])
        generator = torch.Generator().manual_seed(stream_seed(seed, "combine", name))
        updates[name] = arithmetic.combine(parts, weights, how, own, density, generator)
        off, length = arithmetic.squared_error(updates[name], parts, weights)
        wrong, whole = wrong + off, whole + length
    if rank is not None and rank > max(limits.values()):
        raise InputError(
            f"--rank {rank} is more than the result has anywhere: {max(limits.values())} hold it "
            "exactly. Give at most that."
        )
    return updates, math.sqrt(wrong / whole) if whole else math.nan


def first_head(terms: Sequence[Term]) -> dict[str, torch.Tensor]:
    """The tensors of the first folder's head."""
    return {n: tensor for n, tensor in terms[0].found.tensors.items() if n.startswith(HEADS)}


def mean_head(terms: Sequence[Term]) -> dict[str, torch.Tensor]:
    """The mean of all heads, each with its folder's weight.

    Raises:
        InputError: they are heads of different classes or kinds, or a weight is negative.
    """
    first = first_head(terms)
    told = terms[0].found.description
    for term in terms:
        found = term.found.description
        if (found["labels"], found["head"]["kind"]) != (told["labels"], told["head"]["kind"]):
            raise InputError(
                f"--head mean: {term.found.folder} has a {found['head']['kind']} head for "
                f"{', '.join(found['labels'])}, {terms[0].found.folder} a {told['head']['kind']} "
                f"head for {', '.join(told['labels'])}. Leave --head out to have the first one's."
            )
        if found.get("kind") != told.get("kind"):
            raise InputError(
                f"--head mean: {term.found.folder} answers with {found.get('kind', CLASSES)}, "
                f"{terms[0].found.folder} with {told.get('kind', CLASSES)}. Leave --head out to "
                "have the first one's."
            )
        if term.weight < 0:
            raise InputError(
                f"--head mean: {term.found.folder} has the weight {term.weight:g}, and a mean "
                "takes positive ones. Leave --head out to have the head of the first folder."
            )
    total = sum(term.weight for term in terms)
    names = {term.found.description["head"]["name"] for term in terms}
    if len(names) > 1:
        raise InputError(f"--head mean: the heads have the names {', '.join(sorted(names))}.")
    return {
        name: sum(term.weight / total * term.found.tensors[name] for term in terms)
        for name in first
    }


def describe(terms, updates, origin, num_method) -> dict:
    """The description of the result: the first folder's, but for what training and measuring had to
    say, which is no longer true."""
    first = terms[0].found.description
    config = config_of(terms, updates)
    flags = {flag_name("lora", knob): getattr(config, knob.name) for knob in fields(config)}
    described = {
        "method": {"peft": "lora", "knobs": asdict(config), "targets": sorted(updates)},
        "model": {**first["model"], **flags},
        **{name: first[name] for name in KEPT if name in first},
        "versions": {"fairseq_peft": __version__, "torch": torch.__version__},
        "origin": origin,
    }
    if "parameters" in first:
        head, rest = first["parameters"]["head"], first["parameters"]["total"]
        rest -= first["parameters"]["method"]
        counts = {"method": num_method, "head": head, "total": rest + num_method}
        described["parameters"] = counts
    return described


def config_of(terms, updates):
    """The knobs of LoRA that give these updates their places, with scale 1 everywhere."""
    ranks = {name: len(update.a) for name, update in updates.items()}
    rank, _ = collections.Counter(ranks.values()).most_common(1)[0]
    others = ",".join(f"{name}={found}" for name, found in ranks.items() if found != rank)
    same = len({(term.config.targets, term.config.layers) for term in terms}) == 1
    first = terms[0].config
    return type(first)(
        rank=rank,
        alpha=float(rank),
        dropout=first.dropout,
        targets=first.targets if same else ",".join(ranks),
        layers=first.layers if same else "",
        rank_pattern=others,
        alpha_pattern=others,
    )


def told(term: Term) -> dict:
    """What the result says of a folder that it was made of."""
    found = term.found.description
    return {
        "path": str(term.found.folder),
        "json_sha256": found["json_sha256"],
        "weight": term.weight,
        "labels": found.get("labels"),
        "metrics": found.get("metrics"),
    }


def count(tensors) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def size(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
