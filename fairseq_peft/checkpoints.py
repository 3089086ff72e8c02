"""Fine-tuned checkpoints outside of training: rebuilt without a data folder, and written anew."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fairseq_peft.errors import InputError
from fairseq_peft.files import whole


def check_paths(checkpoint: Path, out: Path, force: bool) -> None:
    """Raise InputError where there is nothing to read, or something not to be written over."""
    if not checkpoint.is_file():
        raise InputError(
            f"{checkpoint} does not exist. Give a checkpoint that fairseq-train wrote."
        )
    if out.is_dir():
        raise InputError(f"{out} is a folder. Give the name of the file to write.")
    if out.exists() and out.samefile(checkpoint):
        raise InputError(f"{out} is the checkpoint itself. Give the merged file another name.")
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


def load(path: Path, out: Path, force: bool) -> Loaded:
    """The checkpoint of ``path``, about to become the file ``out``.

    Raises:
        InputError: it cannot be read or rebuilt, or ``out`` is not to be written.
    """
    from fairseq_peft import slim

    check_paths(path, out, force)
    state = slim.read(str(path))
    model = rebuild(path, state)
    longest = model.max_positions() - model.num_reserved
    batches = list(random_batches(model.encoder.dictionary, longest))
    head = choose_head(path, state["cfg"]["task"], model)
    return Loaded(state, model, batches, head, logits(model, batches, head))


def rebuild(path: Path, state: dict):
    """The fine-tuned model of a checkpoint, in eval mode, with every key accounted for.

    No data folder is needed: the weights say how many words and classes there are.
    """
    from types import SimpleNamespace

    from fairseq import models
    from omegaconf import OmegaConf

    import fairseq_peft.plugin  # noqa: F401
    from fairseq_peft.models.roberta import HEADS

    cfg = state.get("cfg") if isinstance(state.get("cfg"), dict) else {}
    given, weights = cfg.get("model") or {}, state["model"]
    name = given.get("_name") if isinstance(given, dict) else None
    model_class = models.ARCH_MODEL_REGISTRY.get(name, models.MODEL_REGISTRY.get(name))
    embedding = weights.get("encoder.sentence_encoder.embed_tokens.weight")
    if not hasattr(model_class, "inject") or embedding is None:
        raise InputError(
            f"{path} is no model of this plugin (its architecture is {name!r}), so there is "
            "nothing to merge. Give a checkpoint of fairseq-train with --peft."
        )
    # Neither the autocast nor the files of training are needed to compute what it computes.
    given = OmegaConf.create({**given, "precision": "fp32", "init_embeddings": ""})
    task = SimpleNamespace(
        source_dictionary=placeholder(len(embedding)), cfg=SimpleNamespace(seed=1)
    )
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

    found = []
    with torch.no_grad():
        for tokens in batches:
            scores = model(tokens, features_only=head is not None, classification_head_name=head)[0]
            found.append(scores if head else scores[tokens != model.encoder.dictionary.pad()])
    return torch.cat(found)


def write(out: Path, state: dict, cfg: dict, weights: dict) -> None:
    """Write what fairseq's loader looks for, and no history to go on from."""
    import torch

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
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole(out) as temporary:
            torch.save(plain, temporary)
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error}). Give another place.") from error
