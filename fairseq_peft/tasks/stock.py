"""What a run of one of fairseq's own tasks keeps, where its model is the plugin's and has a base:
checkpoints without what is the base's, and the adapter folder of the best validation. Models of
Hugging Face's keep such a folder, too. Whatever the task is, an optimizer that would ignore what
the model asks of it is refused.

``--task sentence_classification`` has callbacks for this. Here fairseq's functions are wrapped.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from fairseq import checkpoint_utils, utils
from fairseq.distributed import utils as distributed_utils
from omegaconf import OmegaConf

from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.checkpoints import extended, slim
from fairseq_peft.checkpoints import file as checkpoint_file
from fairseq_peft.checkpoints import start as run_start
from fairseq_peft.data import checks
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery
from fairseq_peft.models import folder
from fairseq_peft.models.hf_models import HFModel
from fairseq_peft.optim.peft_adamw import check_learning_rates
from fairseq_peft.tasks import best_adapter, record
from fairseq_peft.text import bpe
from fairseq_peft.text import generation as search

logger = logging.getLogger(__name__)


def install() -> None:
    """Wrap fairseq's functions; once."""
    if not hasattr(checkpoint_utils.load_checkpoint, "keeps_adapters"):
        checkpoint_utils.load_checkpoint = _load_checkpoint(checkpoint_utils.load_checkpoint)
        checkpoint_utils.save_checkpoint = _save_checkpoint(checkpoint_utils.save_checkpoint)
        checkpoint_utils.load_checkpoint.keeps_adapters = True


@dataclass
class Kept:
    """What a run keeps besides fairseq's own files; the task has it as ``kept``.

    Attributes:
        folder: of the adapter.
        base: path and sha256 of the base.
        text_files: name -> file, of those that text is cut into pieces with.
        generation: how ``fairseq-peft generate`` searches, where its flags say nothing.
    """

    folder: Path
    base: dict
    text_files: dict
    generation: dict

    def write(self, trainer, value: float, epoch: int) -> None:
        """Write the adapter folder of a model that has just been validated.

        Raises:
            InputError: it cannot be written.
        """
        model, task, cfg = surgery.unwrap(trainer.model), trainer.task, trainer.cfg
        tensors, described = folder.content(model, None, self.base)
        words, copies = words_of(task)
        described.update(
            task=flags_of(task),
            **words,
            **({"generation": self.generation} if self.generation else {}),
            metrics={
                "subset": cfg.dataset.valid_subset.split(",")[0],
                "metric": cfg.checkpoint.best_checkpoint_metric,
                "value": best_adapter.finite(float(value)),
                "epoch": epoch,
                "num_updates": trainer.get_num_updates(),
            },
            seed=cfg.common.seed,
            versions=record.versions(),
            command=" ".join(sys.argv),
        )
        adapter_folder.write(self.folder, tensors, described, {**copies, **self.text_files})
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        logger.info(f"{self.folder}: {len(tensors)} tensors, {num_bytes:,} bytes, new best")


def _load_checkpoint(original):
    """Called once, before the first update of a run."""

    @functools.wraps(original)
    def load_checkpoint(cfg, trainer, **kwargs):
        optimizer = getattr(trainer.cfg, "optimizer", None)
        check_learning_rates(surgery.unwrap(trainer.model), getattr(optimizer, "_name", None))
        if line := getattr(surgery.unwrap(trainer.model), "dropout_line", ""):
            logger.info(line)
        start = start_of(cfg, trainer.checkpoint_suffix)
        begin_run = getattr(trainer.task, "begin_run", None)
        if begin_run is not None:
            begin_run(surgery.unwrap(trainer.model))
        try:
            found = original(cfg, trainer, **kwargs)
        except (AssertionError, ValueError) as error:
            raise _other_optimizer(cfg, trainer, error) or error from error
        # Of other models, and of the task that decides itself, this is no matter.
        model = surgery.unwrap(trainer.model)
        if not cfg.no_save:
            _keep_what_is_due(cfg, trainer.task, model, start)
        return found

    return load_checkpoint


#: What torch and fairseq say of an optimizer's state that is not this run's.
_OTHER_OPTIMIZER = ("parameter group", "reset the optimizer")


def _other_optimizer(cfg, trainer, error):
    """The InputError that ``error`` means; None where it means something else, or the model is
    stock fairseq's, which answers for itself."""
    is_ours = hasattr(surgery.unwrap(trainer.model), "added")
    if not is_ours or not any(words in str(error) for words in _OTHER_OPTIMIZER):
        return None
    path = run_start.chosen(cfg, trainer.checkpoint_suffix)
    return InputError(
        f"The optimizer's state in {path} is of another run: {str(error).partition(';')[0]}. "
        "Give a base with --finetune-from-model, or go on from here with --reset-optimizer."
    )


def _keep_what_is_due(cfg, task, model, start):
    """Let the run keep what it should.

    Raises:
        InputError: ``--generation`` is not what it should be, or would be ignored.
    """
    given = getattr(getattr(model, "args", None), "generation", None)
    generation = search.parse(given) if given else {}
    full = getattr(getattr(model, "args", None), "full_checkpoints", None)
    if isinstance(model, HFModel):
        _keep_beside_folder(cfg, task, model)
    elif start is not None and full is not None and not hasattr(type(task), "leave_out"):
        _keep(cfg, task, model, start, full)
    kept = getattr(task, "kept", None)
    if kept is not None:
        kept.generation = generation
    elif generation and distributed_utils.get_global_rank() == 0:
        raise InputError(
            f"--generation {given} would be ignored: this run writes no adapter folder of a model "
            "that writes text. Leave it out."
        )


def _keep(cfg, task, model, start, full):
    """Let the run keep what it should, if not all of the model trains."""
    if all(t.requires_grad for t in surgery.tensors(model, model.family).values()):
        return
    state = slim.read(start.path, cfg.finetune_from_model)
    _check_languages(task, state, start.path)
    start.resumes = any(name in state["model"] for name in model.added)
    base_ref = (
        None if full else slim.base_ref_of_run(model, model.family, state, start, cfg.save_dir)
    )
    if base_ref is not None:
        task.leave_out = functools.partial(base_ref.leave_out, folder=cfg.save_dir)
    base = best_adapter.describe_base(start, state, cfg.save_dir)
    if base is not None:
        data = utils.split_paths(flags_of(task).get("data") or "")
        place = bpe.locate(data[0]) if data else None
        _keep_adapter(cfg, task, base, {} if place is None else place.files)


def _check_languages(task, state, path):
    """Raise InputError where the rows of frozen languages would be those of others: they stand in
    the order of ``--langs``, and the number of rows alone tells nothing."""
    ours = extended.languages_of(flags_of(task))
    theirs = extended.languages_of(checkpoint_file.told(state, "task"))
    if ours[: len(theirs)] != theirs[: len(ours)]:
        raise InputError(
            f"{path} was trained with --langs {','.join(theirs)}, and --langs {','.join(ours)} "
            "gives its rows to other languages. Name its languages in its order, new ones last."
        )


def _keep_beside_folder(cfg, task, model):
    """As ``_keep``, for a model that came from a folder of Hugging Face's: what its checkpoints
    leave out is decided by its task."""
    trains_all = all(t.requires_grad for t in surgery.tensors(model, model.family).values())
    if model.base_digests and not trains_all:
        base = {"path": model.args.hf_model, "sha256": model.base_sha256}
        _keep_adapter(cfg, task, base, {})


def _keep_adapter(cfg, task, base, text_files):
    """Let the run write an adapter folder."""
    if distributed_utils.get_global_rank() == 0:
        task.kept = Kept(Path(cfg.save_dir) / "adapter", base, text_files, {})
        adapter_folder.check_place(task.kept.folder)


def _save_checkpoint(original):
    """Called after a validation, or with None for its score after none."""

    @functools.wraps(original)
    def save_checkpoint(cfg, trainer, epoch_itr, val_loss):
        saved = original(cfg, trainer, epoch_itr, val_loss)
        kept = getattr(trainer.task, "kept", None)
        # By the same rule as checkpoint_best.pt.
        best = getattr(checkpoint_utils.save_checkpoint, "best", None)
        if kept is not None and val_loss is not None and val_loss == best:
            kept.write(trainer, val_loss, epoch_itr.epoch)
        return saved

    return save_checkpoint


def start_of(cfg, suffix: str):
    """The checkpoint that a run starts from, as fairseq chooses it, as ``path``, and the ``base``
    that it may be; None from scratch."""
    path = run_start.chosen(cfg, suffix)
    if path is None or not os.path.isfile(path):
        return None
    return SimpleNamespace(path=path, base=cfg.finetune_from_model or path)


def words_of(task) -> tuple[dict, dict]:
    """What a description says of the words: the dictionaries of source and target, or the tokenizer
    of a folder; and the files of them: name -> content. Dictionaries hold what the task has added,
    such as languages."""
    if task.source_dictionary is None:
        return task.state_dict(), {}  # the tokenizer, by name and SHA-256
    told, files = {}, {}
    flags = flags_of(task)
    for side in ("source", "target"):
        words = getattr(task, f"{side}_dictionary")
        language = flags.get(f"{side}_lang")
        name = f"dict.{language}.txt" if language else adapter_folder.DICTIONARY
        text = io.StringIO()
        words.save(text)
        content = text.getvalue().encode()
        if files.get(name, content) != content:
            name = f"dict.{side}.txt"
        told[side] = {"file": name, "sha256": checks.fingerprint(words), "num_rows": len(words)}
        files[name] = content
    return {"dictionaries": told}, files


def flags_of(task) -> dict:
    """The task's flags, as far as JSON has them, the data folder as ``data``."""
    cfg = task.cfg if getattr(task, "cfg", None) is not None else task.args
    given = (
        vars(cfg) if isinstance(cfg, Namespace) else OmegaConf.to_container(cfg, enum_to_str=True)
    )
    plain = (str, int, float, bool, list)
    found = {n: v for n, v in given.items() if isinstance(v, plain) and "${" not in str(v)}
    found.setdefault("_name", found.get("task"))
    return found
