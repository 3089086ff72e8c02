"""Arithmetic on adapter folders of LoRA: one folder out of several, or the negation of one.

    combine([("runs/a/adapter", 0.5), ("runs/b/adapter", 0.5)], "both", how="svd")

Only what LoRA has learnt is combined (``arithmetic.py``). All the rest, such as labels and how
texts become tokens, is the first folder's; so is the head, unless a mean is asked for.
"""

from __future__ import annotations

import collections
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple, Optional, Union

import torch

from fairseq_peft import __version__, arithmetic, artifact, low_rank, methods
from fairseq_peft.arithmetic import Update
from fairseq_peft.artifact import Artifact
from fairseq_peft.errors import InputError
from fairseq_peft.methods.base import flag_name
from fairseq_peft.models.roberta import FAMILY, HEADS
from fairseq_peft.seeds import stream_seed

logger = logging.getLogger(__name__)

HEAD_CHOICES = ("first", "mean")
#: Flags of a model that may differ from folder to folder: they are a matter of training.
OF_TRAINING = {"dropout", "attention_dropout", "activation_dropout", "pooler_dropout"}
OF_TRAINING |= {"frozen_dropout", "precision", "_name", "peft"}


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


@dataclass(frozen=True)
class Term:
    """A folder that was read, and its weight."""

    found: Artifact
    weight: float
    config: object
    updates: dict[str, Update]


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
    for folder, weight in given:
        if not math.isfinite(weight) or weight == 0:
            raise InputError(f"{folder} has the weight {weight:g}. Give a number other than 0.")
    terms = [read(folder, weight) for folder, weight in given]
    check_together(terms)
    updates, error = combine_updates(terms, how, rank, density, 1 if seed is None else seed)
    tensors = {}
    for name, update in updates.items():
        tensors[f"{FAMILY.root}.{name}.lora_A"] = update.a
        tensors[f"{FAMILY.root}.{name}.lora_B"] = update.b
    heads = first_head(terms) if head == "first" else mean_head(terms)
    origin = {"verb": "combine", "how": how, "rank": rank, "density": density, "seed": seed}
    origin.update(head=head, folders=[told(term) for term in terms])
    described = describe(terms, updates, origin, count(tensors))
    copies = {artifact.DICTIONARY: terms[0].found.dictionary}
    if terms[0].found.tokenizer is not None:
        copies[artifact.TOKENIZER] = terms[0].found.tokenizer
    artifact.write(out, {**tensors, **heads}, described, copies)
    ranks = {name: len(update.a) for name, update in updates.items()}
    return Combined(ranks, error, size(tensors), size(heads))


def check_choices(how, rank, density, seed, head) -> None:
    """Raise InputError where a choice is unknown, out of range, or would be ignored."""
    if how not in arithmetic.HOWS:
        raise InputError(f"--how {how!r} is unknown: give one of {', '.join(arithmetic.HOWS)}.")
    if head not in HEAD_CHOICES:
        raise InputError(f"--head {head!r} is unknown: give {' or '.join(HEAD_CHOICES)}.")
    for flag, value, used in (
        ("--rank", rank, how in arithmetic.OF_DELTAS),
        ("--density", density, arithmetic.takes_density(how)),
        ("--seed", seed, "dare" in how),
    ):
        if value is not None and not used:
            raise InputError(f"{flag} {value} would be ignored: --how {how} has no use for it.")
    if rank is not None and rank < 1:
        raise InputError(f"--rank {rank} is not a rank: give an integer of at least 1.")
    if arithmetic.takes_density(how) and density is None:
        raise InputError(
            f"--how {how} needs --density, the share of the values that stay: 0.2 in the paper of "
            "TIES, 0.1 to 0.5 in that of DARE."
        )
    if density is not None and not 0 < density <= 1:
        raise InputError(f"--density {density:g} is not in (0, 1]: give a share such as 0.2.")


def read(folder: Union[str, Path], weight: float) -> Term:
    """The updates of a LoRA folder.

    Raises:
        InputError: it is none, or holds what is no update.
    """
    found = artifact.read(folder)
    method = found.description["method"]
    if method["peft"] != "lora":
        raise InputError(
            f"{folder} is of --peft {method['peft']}. Only the updates of lora add up: give "
            "folders of it alone."
        )
    if method["knobs"].keys() != {knob.name for knob in fields(methods.get("lora").Config)}:
        raise InputError(
            f"{folder} was written with other knobs than this version of fairseq_peft has. Combine "
            "it with the version that wrote it."
        )
    config = methods.get("lora").Config(**method["knobs"])
    for flag, value, plain, why in (
        ("init", config.init, "zero", "it is beside weights that the start has changed"),
        ("bias", config.bias, "none", "biases that train are values, and no updates"),
    ):
        if value != plain:
            raise InputError(
                f"{folder} was trained with --lora-{flag} {value}, so what it holds does not add "
                f"up: {why}. Train with --lora-{flag} {plain}, or merge it."
            )
    if found.description["complete"]:
        raise InputError(
            f"{folder} holds a whole model, trained from scratch: there is no base to which others "
            "add. Give folders of runs on a common base."
        )
    start = FAMILY.root + "."
    names = [n[len(start) : -len(".lora_A")] for n in found.tensors if n.endswith(".lora_A")]
    linears = [name for name in names if name != FAMILY.embedding]
    updates = {}
    for name, (_, scale) in low_rank.choose(config, linears, set(names) - set(linears)).items():
        a, b = (found.tensors[f"{start}{name}.lora_{kind}"] for kind in "AB")
        updates[name] = Update(a, b, scale)
    return Term(found, weight, config, updates)


def check_together(terms: Sequence[Term]) -> None:
    """Raise InputError unless all folders are of one base, read in one way."""
    first, told = terms[0].found, terms[0].found.description
    method_flags = {flag_name("lora", knob) for knob in fields(terms[0].config)}
    for term in terms[1:]:
        other, found = term.found, term.found.description
        if found["base"]["sha256"] != told["base"]["sha256"]:
            raise InputError(
                f"{other.folder} belongs to another base ({found['base']['sha256'][:12]}, then "
                f"{found['base']['path']}) than {first.folder} ({told['base']['sha256'][:12]}, "
                f"then {told['base']['path']}): their updates are of different weights. Give "
                "folders of one base."
            )
        if found["dictionary"]["sha256"] != told["dictionary"]["sha256"]:
            raise InputError(
                f"{other.folder} has another dictionary than {first.folder}: their tokens mean "
                "different words. Give folders of one dictionary."
            )
        names = (set(told["model"]) | set(found["model"])) - OF_TRAINING - method_flags
        for name in sorted(names - {"classifier_head", "pooler_activation_fn"}):
            if told["model"].get(name) != found["model"].get(name):
                raise InputError(
                    f"{other.folder} has --{name.replace('_', '-')} {found['model'].get(name)}, "
                    f"{first.folder} {told['model'].get(name)}: these are different models. Give "
                    "folders of one architecture."
                )


def combine_updates(terms, how, rank, density, seed) -> tuple[dict[str, Update], float]:
    """Module -> its combined update, and how far all are from the weighted sum. A folder that has
    no update of a module adds nothing there."""
    updates, wrong, whole = {}, 0.0, 0.0
    exact = {}
    for name in dict.fromkeys(name for term in terms for name in term.updates):
        having = [term for term in terms if name in term.updates]
        parts, weights = [t.updates[name] for t in having], [t.weight for t in having]
        ranks = [len(part.a) for part in parts]
        if how in arithmetic.OF_FACTORS and len(set(ranks)) > 1:
            raise InputError(
                f"--how {how} adds up factors, and those of {name} have the ranks "
                f"{', '.join(map(str, ranks))}. Give --how cat or svd, which take any ranks."
            )
        exact[name] = min(sum(ranks), *parts[0].a.shape[1:], len(parts[0].b))
        if how == "svd":
            rank_here = min(rank or max(ranks), exact[name])
        else:
            rank_here = min(rank or max(ranks), parts[0].a.shape[1], len(parts[0].b))
        generator = torch.Generator().manual_seed(stream_seed(seed, "combine", name))
        made = arithmetic.combine(parts, weights, how, rank_here, density, generator)
        off, size_ = arithmetic.squared_error(made, parts, weights)
        wrong, whole = wrong + off, whole + size_
        updates[name] = made
    if how == "svd" and rank is not None and rank > max(exact.values()):
        raise InputError(
            f"--rank {rank} is more than the sum has anywhere: {max(exact.values())} hold it "
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
    before = first["parameters"]
    return {
        "method": {"peft": "lora", "knobs": asdict(config), "targets": sorted(updates)},
        "model": {**first["model"], **flags},
        **{name: first[name] for name in ("head", "labels", "input", "complete", "base")},
        "dictionary": first["dictionary"],
        "parameters": {
            "method": num_method,
            "head": before["head"],
            "total": before["total"] - before["method"] + num_method,
        },
        "versions": {"fairseq_peft": __version__, "torch": torch.__version__},
        "origin": origin,
    }


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
        "labels": found["labels"],
        "metrics": found.get("metrics"),
    }


def count(tensors) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def size(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
