"""How fairseq writes and reads checkpoints, with the plugin: whole files, slim content.

fairseq has no hook for either, so its functions are wrapped. A task with a method ``leave_out``
decides what a checkpoint holds (``slim.py``), one with a run which is the best (``best.py``).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import shutil

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_REGISTRY
from fairseq.trainer import Trainer
from omegaconf import OmegaConf, open_dict

from fairseq_peft.checkpoints import best, slim
from fairseq_peft.checkpoints import file as checkpoint_file
from fairseq_peft.errors import InputError
from fairseq_peft.files import whole
from fairseq_peft.injection import surgery

logger = logging.getLogger(__name__)


def install() -> None:
    """Wrap fairseq's functions, once."""
    if getattr(Trainer.state_dict, "__wrapped__", None):
        return
    Trainer.state_dict = _state_dict(Trainer.state_dict)
    checkpoint_utils.load_checkpoint_to_cpu = _load(checkpoint_utils.load_checkpoint_to_cpu)
    convert = checkpoint_utils.convert_namespace_to_omegaconf
    checkpoint_utils.convert_namespace_to_omegaconf = _convert(convert)
    checkpoint_utils._upgrade_state_dict = _upgrade(checkpoint_utils._upgrade_state_dict)
    checkpoint_utils.torch_persistent_save = _save(checkpoint_utils.torch_persistent_save)
    PathManager.copy = staticmethod(_copy(PathManager.copy))
    best.install()


#: Flags that are other in the end than a command line says them: what auto means, where a
#: relative path is, what a method's defaults are.
DECIDED = ("precision", "hf_model", "hf_config", "hf_tokenizer", "ia3_targets", "ia3_feedforward")


def _state_dict(original):
    """A model or task that is named by itself has a copy of its flags, and fairseq writes the
    original; what was decided of them is in the copy."""

    @functools.wraps(original)
    def state_dict(trainer):
        state = original(trainer)
        owners = {"model": surgery.unwrap(trainer.model), "task": trainer.task}
        for group, owner in owners.items():
            flags = checkpoint_file.fields(state["cfg"][group])
            own = getattr(owner, "args" if group == "model" else "cfg", None)
            for name in DECIDED:
                if name in flags and hasattr(own, name):
                    flags[name] = getattr(own, name)
        state["extra_state"].update(best.to_remember(trainer.task))
        leave_out = getattr(trainer.task, "leave_out", None)
        return leave_out(state) if leave_out else state

    return state_dict


def _load(original):
    """fairseq leaves the choice of the loader to torch, copies the whole file, and shows a
    traceback."""

    @functools.wraps(original)
    def load_checkpoint_to_cpu(path, arg_overrides=None, load_on_all_ranks=False):
        there = os.path.isfile(path)
        if there and not checkpoint_file.SAFE_BY_DEFAULT:
            checkpoint_file.load(path)
        try:
            with checkpoint_file.mapping():
                state = original(path, arg_overrides, load_on_all_ranks)
        except Exception:
            if there:
                checkpoint_file.load(path)  # says what is wrong with the file, if anything is
            raise
        slim.fill(state, path, (arg_overrides or {}).get("finetune_from_model"))
        return state

    return load_checkpoint_to_cpu


def _convert(original):
    """fairseq looks up what an older checkpoint's args name, and fails with a KeyError where that
    is somebody else's. Whoever starts from it needs the weights alone."""

    @functools.wraps(original)
    def convert_namespace_to_omegaconf(args):
        known = {"task": TASK_REGISTRY, "arch": ARCH_MODEL_REGISTRY}
        known.update((name, entry["registry"]) for name, entry in REGISTRIES.items())
        told = dict(vars(args))
        foreign = {n: told[n] for n in known if told.get(n) not in (None, *known[n])}
        if foreign:
            logger.info(f"the checkpoint names what is not known here, and left out: {foreign}")
        reader = logging.getLogger("fairseq.dataclass.utils")
        try:
            reader.disabled = True  # it shows a screenful where it fails
            cfg = original(argparse.Namespace(**{n: told[n] for n in told if n not in foreign}))
        except Exception as error:  # hydra's, omegaconf's, Python's: by what is odd in the args
            logger.info(f"what the checkpoint says of its training cannot be read: {error}")
            cfg = OmegaConf.create({"task": None, "model": None})
        finally:
            reader.disabled = False
        with open_dict(cfg):
            for group, name in (("task", "task"), ("model", "arch")):
                if cfg[group] is None:  # fairseq looks into it
                    cfg[group] = {"_name": told.get(name)}
        return cfg

    return convert_namespace_to_omegaconf


def _upgrade(original):
    """fairseq looks into these groups of a checkpoint's cfg wherever they are there, None, too."""

    @functools.wraps(original)
    def _upgrade_state_dict(state):
        cfg = state.get("cfg")
        if OmegaConf.is_dict(cfg):
            with open_dict(cfg):
                for group in ("task", "model", "generation"):
                    if group in cfg and cfg[group] is None:
                        del cfg[group]
        return original(state)

    return _upgrade_state_dict


def _save(original):
    """fairseq writes to ``.tmp`` and renames, but does not flush, and shows a traceback."""

    @functools.wraps(original)
    def torch_persistent_save(obj, filename, async_write=False):
        if async_write or not PathManager.supports_rename(filename):
            return original(obj, filename, async_write)
        with _one_sentence(filename), whole(filename) as temporary, open(temporary, "wb") as file:
            torch.save(obj, file)

    return torch_persistent_save


def _copy(original):
    """fairseq copies in place: killed in the middle, it leaves half of checkpoint_last.pt."""

    @functools.wraps(original)
    def copy(src_path, dst_path, overwrite=False):
        if PathManager.path_requires_pathmanager(src_path + dst_path):
            return original(src_path, dst_path, overwrite)
        with _one_sentence(dst_path), whole(dst_path) as temporary:
            shutil.copyfile(src_path, temporary)
        return True

    return copy


@contextlib.contextmanager
def _one_sentence(path):
    """Raise InputError where the disk, or the folder, does not take the file."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = error
        while reason is not None and not isinstance(reason, OSError):
            reason = reason.__context__  # torch.save's own comes on top of it
        if reason is None:
            raise
        raise InputError(
            f"{path} cannot be written ({reason.strerror or reason}). Checkpoints that were "
            "written before are whole: make room or rights there, and the same command goes on "
            "from the last one."
        ) from error
