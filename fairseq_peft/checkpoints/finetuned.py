"""Fine-tuned checkpoints and adapter folders outside of training: rebuilt without a data folder,
and written anew."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fairseq_peft.errors import InputError

#: How far a merge in fp32 may move a logit, relative to the largest: rounding is far below.
MERGE_LIMIT = 1e-3


def check_paths(checkpoint: Path, out: Path, force: bool) -> None:
    """Raise InputError where there is nothing to read, or something not to be written over."""
    if not checkpoint.exists():
        raise InputError(
            f"{checkpoint} does not exist. Give a checkpoint that fairseq-train wrote."
        )
    if out.is_file() and out.samefile(checkpoint):
        raise InputError(f"{out} is the checkpoint itself. Give the merged file another name.")
    check_out_file(out, force)


def check_out_file(out: Path, force: bool) -> None:
    """Raise InputError where the file ``out`` is not to be written."""
    if out.is_dir():
        raise InputError(f"{out} is a folder. Give the name of the file to write.")
    if out.exists() and not force:
        raise InputError(f"{out} exists. Give another name, or --force to write over it.")


class Loaded(NamedTuple):
    """A fine-tuned checkpoint, its model, and what the model says of random batches.

    Attributes:
        state: the checkpoint.
        model: rebuilt from it, in eval mode.
        batches, head: what ``logits`` were computed with.
        logits: of the model as it was loaded.
    """

    state: dict
    model: object
    batches: list
    head: str | None
    logits: object


def add_base_arguments(parser) -> None:
    """The flags with which a command takes an adapter folder."""
    parser.add_argument(
        "--base",
        type=Path,
        help="base of an adapter folder, or of a checkpoint whose base has moved",
    )
    parser.add_argument(
        "--allow-other-base",
        action="store_true",
        help="take another base than the one that the adapter was trained on",
    )
    add_trust_argument(parser)


def add_trust_argument(parser) -> None:
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="open a .pt file even if that runs code that its author put there",
    )


def load(args, state: dict | None = None) -> Loaded:
    """The checkpoint or adapter folder ``args.checkpoint``, about to become the file ``args.out``.

    Args:
        args: with ``force`` and the flags of ``add_base_arguments``, as far as the command has
            them.
        state: the checkpoint, where it is read already.

    Raises:
        InputError: it cannot be read or rebuilt, or ``out`` is not to be written.
    """
    path, base = args.checkpoint, getattr(args, "base", None)
    check_paths(path, args.out, args.force)
    if path.is_dir():
        flags = args.allow_other_base, args.trust_checkpoint
        found, model = from_folder(path, base, *flags, of_any_task=True)
        state = stand_in(found.description)
    else:
        if state is None:
            state = read(path, base, args.trust_checkpoint)
        model = rebuild(path, state)
    batches = list(random_batches(model.dictionary, model.longest_text))
    head = choose_head(path, state["cfg"]["task"], model)
    return Loaded(state, model, batches, head, logits(model, batches, head))


def read(path: Path, base: Path | None, trust: bool) -> dict:
    """The checkpoint ``path``, with what its base holds.

    Raises:
        InputError: it cannot be read, or the base is missing, another, or would be ignored.
    """
    from fairseq_peft.checkpoints import slim

    if base is not None and not base.is_dir():
        check_file(base)
    state = slim.read(str(path), base and str(base), trust)
    if slim.ENTRY not in state and not is_of_library(state):
        _check_no_base(path, base)
    return state


def from_folder(
    path: Path,
    base: Path | None,
    allow_other: bool = False,
    trust: bool = False,
    of_any_task: bool = False,
):
    """An adapter folder, and the model that it makes of its base, in eval mode.

    Raises:
        InputError: the folder is damaged, or the base is missing, another, or has another
            dictionary or tokenizer.
    """
    import fairseq  # noqa: F401  # brings the plugin

    from fairseq_peft.adapters import folder as adapter_folder
    from fairseq_peft.checkpoints import slim
    from fairseq_peft.data import checks
    from fairseq_peft.models import folder

    found = adapter_folder.read(path, of_any_task)
    if found.is_of_folder:
        return found, beside_folder(found, base, allow_other)[1]
    weights = None
    if found.description["complete"]:
        _check_no_base(path, base)
    if base is not None:
        check_file(base)
        weights = slim.read(str(base), trust=trust)["model"]
    model = folder.load(found, weights, allow_other)
    if base is not None and not found.is_text:
        checks.check_beside(str(base), model.encoder.dictionary, str(found.dictionary))
    return found, model


def beside_folder(found, base: Path | str | None, allow_other: bool = False):
    """The task and the model, in eval mode, of an adapter folder that belongs to a folder of
    Hugging Face's.

    Raises:
        InputError: ``base`` is missing, another, or has another tokenizer.
    """
    from fairseq import tasks
    from omegaconf import OmegaConf

    from fairseq_peft.models import folder

    if base is None:
        raise InputError(
            f"{found.folder} holds what was trained on a base, not the base. Give it (--base); it "
            f"was {found.description['base']['path']}."
        )
    cfg = OmegaConf.create(stand_in(found.description)["cfg"])
    cfg.task.data = str(found.folder)
    task = tasks.setup_task(cfg.task)
    task.load_state_dict({"tokenizer": found.description["tokenizer"]})
    return task, folder.load_beside(found, base, task, allow_other)


def plain_of_folder(path: Path, labels=(), **flags):
    """The task and the model, in eval mode, of a folder of Hugging Face's, as it is or with a
    method at its start.

    Args:
        labels: words that the model answers with, where there are few.
        flags: ``peft`` and those of its methods.

    Raises:
        InputError: it is no such folder, or has a model that is not known here.
    """
    from fairseq import tasks
    from omegaconf import OmegaConf

    from fairseq_peft.models import folder, hf_base, hf_models

    kind, _ = hf_base.read_config(str(path), "")
    archs = [name for name, model in hf_models.ARCHS.items() if kind in model.known]
    if not archs:
        raise InputError(
            f"{path} has a model of type {kind!r}, which is not known here. Give one of "
            f"{', '.join(known for model in hf_models.ARCHS.values() for known in model.known)}."
        )
    name = "causal_lm" if archs == ["hf_causal_lm"] else "text_to_text"
    described = {"task": {"_name": name, "data": "", "labels": ",".join(labels)}, "model": {}}
    task = tasks.setup_task(OmegaConf.create(stand_in(described)["cfg"]).task)
    given = {"_name": archs[0], "hf_model": str(path), "precision": "fp32", "peft": "full"}
    with folder.fp32_by_default():
        model = task.build_model(OmegaConf.create({**given, **flags}))
    return task, model.eval()


def is_of_library(state: dict) -> bool:
    """Whether a checkpoint is of one of Hugging Face's models."""
    from fairseq_peft.models import hf_models

    cfg = state.get("cfg")
    model = cfg.get("model") if isinstance(cfg, dict) else None
    return isinstance(model, dict) and model.get("_name") in hf_models.ARCHS


def of_library(path: Path, state: dict, base: Path | None):
    """The task and the model, in eval mode, of a checkpoint of one of Hugging Face's models.

    Args:
        base: the folder of the model; None for that of the run.

    Raises:
        InputError: the base is missing or another, has another tokenizer, or would be ignored.
    """
    from fairseq import tasks
    from omegaconf import OmegaConf

    from fairseq_peft.models import folder

    cfg = OmegaConf.create({name: state["cfg"][name] for name in ("task", "model")})
    if not cfg.model.get("hf_model"):
        _check_no_base(path, base)
    task = tasks.setup_task(cfg.task)
    task.load_state_dict(state.get("task_state") or {})
    flags = {**cfg.model, "precision": "fp32", **({} if base is None else {"hf_model": str(base)})}
    with folder.fp32_by_default():
        model = task.build_model(OmegaConf.create(flags), from_checkpoint=True)
    model.load_state_dict(state["model"])
    return task, model.eval()


def _check_no_base(path: Path, base: Path | None) -> None:
    """Raise InputError where a base is given to what holds the whole model."""
    if base is not None:
        raise InputError(
            f"--base {base} would be ignored: {path} holds the whole model. Leave it out."
        )


def check_file(path: Path, what: str = "the checkpoint of the base (model.pt)") -> None:
    """Raise InputError where there is no file; ``what`` is to be given."""
    if not path.is_file():
        raise InputError(f"{path} does not exist. Give {what}.")


def stand_in(description: dict) -> dict:
    """What a checkpoint of the run that wrote an adapter folder would say beside its weights; of
    what the folder does not tell, fairseq's defaults."""
    from fairseq.dataclass.configs import FairseqConfig
    from omegaconf import OmegaConf

    defaults = OmegaConf.to_container(OmegaConf.structured(FairseqConfig), enum_to_str=True)
    if "task" in description:  # it answers with text
        return {"cfg": {**defaults, **{n: description[n] for n in ("task", "model")}}}
    task = {
        "_name": "sentence_classification",
        "data": description.get("data", ""),
        "classification_head_name": description["head"]["name"],
        "no_init_token": not description["input"]["begin"],
        "seed": description.get("seed", 1),
    }
    labels = {
        "labels": description["labels"],
        "dictionary": description["dictionary"]["sha256"],
        **{key: description[key] for key in ("kind",) if key in description},
    }
    cfg = {**defaults, "task": task, "model": description["model"]}
    return {"cfg": cfg, "task_state": labels}


def rebuild(path: Path, state: dict):
    """The fine-tuned model of a checkpoint, in eval mode, with every key accounted for.

    No data folder is needed: the weights say how many words and classes there are.
    """
    from types import SimpleNamespace

    import fairseq  # noqa: F401  # brings the plugin
    from fairseq import models
    from omegaconf import OmegaConf

    from fairseq_peft.injection.family import join
    from fairseq_peft.models import folder
    from fairseq_peft.models.roberta import HEADS

    cfg = state.get("cfg") if isinstance(state.get("cfg"), dict) else {}
    given, weights = cfg.get("model") or {}, state["model"]
    name = given.get("_name") if isinstance(given, dict) else None
    model_class = models.ARCH_MODEL_REGISTRY.get(name, models.MODEL_REGISTRY.get(name))
    family = getattr(model_class, "family", None)
    embedding = family and weights.get(family.path(f"{family.embedding}.weight"))
    if embedding is None:
        raise InputError(
            f"{path} is no model of this plugin (its architecture is {name!r}), so there is "
            "nothing to merge. Give a checkpoint of fairseq-train with --peft."
        )
    # Neither autocast, graphs nor files of training are needed to compute what it computes.
    plain = {"precision": "fp32", "compile": "off", "init_embeddings": ""}
    given = OmegaConf.create({**given, **plain})
    words = target = placeholder(len(embedding))
    last = family.stacks[-1]
    own = weights.get(family.path(join(last.path, f"{last.embedding}.weight")), embedding)
    if len(own) != len(embedding):  # the target's
        target = placeholder(len(own))
    task = SimpleNamespace(
        source_dictionary=words, target_dictionary=target, cfg=SimpleNamespace(seed=1)
    )
    with folder.fp32_by_default():
        model = models.build_model(given, task, from_checkpoint=True)
        for key, value in weights.items():
            if key.startswith(HEADS) and key.endswith(".out_proj.weight"):
                head = key[len(HEADS) : -len(".out_proj.weight")]
                model.register_classification_head(
                    head, num_classes=len(value), inner_dim=value.shape[1]
                )
    model.accepts_base = False
    try:
        model.load_state_dict(weights)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return model.eval()


def choose_head(path: Path, task: dict, model):
    """The name of the head that classifies, None for a language model."""
    heads = list(model.classification_heads)
    if task.get("_name") != "sentence_classification":
        return heads[0] if heads else None
    head = task["classification_head_name"]
    if head not in heads:
        raise InputError(
            f"{path} has no classification head {head!r} (heads: {', '.join(heads) or 'none'}), so "
            "it cannot classify. Give a checkpoint that fairseq-train wrote."
        )
    return head


def placeholder(num_rows: int):
    """A dictionary of that many rows, with fairseq's specials first and ``<mask>`` last."""
    from fairseq.data import Dictionary

    dictionary = Dictionary()
    for row in range(len(dictionary), num_rows - 1):
        dictionary.add_symbol(f"word{row}")
    dictionary.add_symbol("<mask>")
    dictionary.is_placeholder = True
    return dictionary


def random_batches(dictionary, longest: int, number: int = 3, rows: int = 8):
    """Batches (rows, T) of words between ``<s>`` and ``</s>``, of all lengths up to T."""
    import torch

    generator = torch.Generator().manual_seed(0)
    longest = min(longest, 64)
    for _ in range(number):
        tokens = torch.randint(4, len(dictionary), (rows, longest), generator=generator)
        tokens[:, 0] = dictionary.bos()
        for row, length in zip(tokens, torch.linspace(3, longest, rows).long()):
            row[length - 1] = dictionary.eos()
            row[length:] = dictionary.pad()
        yield tokens


def logits(model, batches, head):
    """Class scores of all batches, or, without a head, scores of words where there are words."""
    import torch

    from fairseq_peft.models.end_heads import decoder_input

    found = []
    pad = (model.encoder if hasattr(model, "encoder") else model.decoder).dictionary.pad()
    with torch.no_grad():
        for tokens in batches:
            if head is None and hasattr(model, "encoder") and hasattr(model, "decoder"):
                # Source and target alike, of two dictionaries as far as the target's goes.
                target = tokens.clamp(max=len(model.decoder.dictionary) - 1)
                found.append(model(tokens, tokens.ne(pad).sum(1), target)[0][tokens != pad])
            elif head is None:
                found.append(model(tokens)[0][tokens != pad])
            elif hasattr(model, "decoder"):
                inputs = tokens, tokens.ne(pad).sum(1), decoder_input(tokens, pad)
                found.append(model(*inputs, classification_head_name=head)[0])
            else:
                found.append(model(tokens, features_only=True, classification_head_name=head)[0])
    return torch.cat(found)


def check_merged(difference, expected) -> None:
    """Raise RuntimeError where merging in fp32 has moved a logit by ``difference``, more than
    rounding does to logits like ``expected``."""
    if not difference <= MERGE_LIMIT * expected.abs().max().clamp(min=1):
        raise RuntimeError(f"the merged model's logits are {difference:.1e} off; nothing written")


def write(out: Path, state: dict, cfg: dict, weights: dict) -> None:
    """Write what fairseq's loader looks for, and no history to go on from."""
    from fairseq_peft.checkpoints import file as checkpoint_file

    history = {
        "criterion_name": "",
        "optimizer_name": "",
        "lr_scheduler_state": {},
        "num_updates": 0,
    }
    plain = {
        "args": None,
        "cfg": cfg,
        "model": weights,
        "task_state": state.get("task_state") or {},
        "optimizer_history": [history],
        "extra_state": {"train_iterator": {"epoch": 1}, "val_loss": None},
        "last_optimizer_state": None,
    }
    checkpoint_file.write(out, plain)
