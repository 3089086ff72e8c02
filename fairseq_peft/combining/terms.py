"""The LoRA folders that a combination is made of: read, and refused where they do not add up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Union

from fairseq_peft import methods
from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.adapters.folder import AdapterFolder
from fairseq_peft.combining import arithmetic
from fairseq_peft.combining.arithmetic import Update
from fairseq_peft.errors import InputError
from fairseq_peft.methods.base import flag_name
from fairseq_peft.methods.shared import low_rank
from fairseq_peft.models.options import ROBERTA

HEAD_CHOICES = ("first", "mean")
#: Flags of a model that may differ from folder to folder: they are a matter of training.
OF_TRAINING = {"dropout", "attention_dropout", "activation_dropout", "pooler_dropout"}
OF_TRAINING |= {"frozen_dropout", "precision", "layer_lr_decay", "_name", "peft"}
OF_TRAINING |= {"generation", "full_checkpoints", "hf_model"}
#: What the models call their table of words.
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings")


@dataclass(frozen=True)
class Term:
    """A folder that was read, and its weight.

    Attributes:
        root: what stands before the names in ``updates``, in those of tensors.
    """

    found: AdapterFolder
    weight: float
    config: object
    updates: dict[str, Update]
    root: str


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
        InputError: it is none, or holds what is no update, or the weight is no weight.
    """
    if not math.isfinite(weight) or weight == 0:
        raise InputError(f"{folder} has the weight {weight:g}. Give a number other than 0.")
    found = adapter_folder.read(folder, of_any_task=True)
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
    root = root_of(found)
    names = [n[len(root) : -len(".lora_A")] for n in found.tensors if n.endswith(".lora_A")]
    linears = [name for name in names if name.rpartition(".")[2] not in EMBEDDINGS]
    updates = {}
    for name, (_, scale) in low_rank.choose(config, linears, set(names) - set(linears)).items():
        a, b = (found.tensors[f"{root}{name}.lora_{kind}"] for kind in "AB")
        updates[name] = Update(a, b, scale)
    return Term(found, weight, config, updates, root)


def root_of(found: AdapterFolder) -> str:
    """What stands before the names of modules, with a dot, in those of a folder's tensors:
    ``encoder.sentence_encoder.`` or ``hf.``; nothing in fairseq's encoder-decoders."""
    told = found.description["method"]["targets"]
    for name in found.tensors:
        module, _, kind = name.rpartition(".")
        ends = [end for end in told if f".{module}".endswith(f".{end}")]
        if kind == "lora_A" and ends:
            return module[: -len(max(ends, key=len))]
    return ""


def words_of(description: dict) -> list[str]:
    """SHA-256 of what says which word an id is: of dictionaries, or of a tokenizer."""
    one = description.get("dictionary") or description.get("tokenizer")
    return [told["sha256"] for told in ([one] if one else description["dictionaries"].values())]


def check_together(terms: Sequence[Term]) -> None:
    """Raise InputError unless all folders are of one base and one architecture."""
    if not terms:
        raise InputError("There is no folder to combine. Give at least one.")
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
        if words_of(found) != words_of(told):
            raise InputError(
                f"{other.folder} has another dictionary than {first.folder}: their tokens mean "
                "different words. Give folders of one dictionary."
            )
        names = (set(told["model"]) | set(found["model"])) - OF_TRAINING - method_flags
        for name in sorted(names - {"classifier_head", "pooler_activation_fn"}):
            # A folder from before a flag has its default.
            _, default, _ = ROBERTA.get(name, (None, None, None))
            if told["model"].get(name, default) != found["model"].get(name, default):
                raise InputError(
                    f"{other.folder} has --{name.replace('_', '-')} {found['model'].get(name)}, "
                    f"{first.folder} {told['model'].get(name)}: these are different models. Give "
                    "folders of one architecture."
                )
