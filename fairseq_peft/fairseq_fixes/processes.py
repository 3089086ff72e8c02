"""What is decided before fairseq starts its processes: several of them on CPUs, a checkpoint for
all, what --fp16 means, and numbers that cannot be.

fairseq starts as many processes as there are GPUs: on a CPU ``--distributed-world-size 2`` is
refused, and with an init method given no process is started at all, and nothing trained, with exit
status 0. And a checkpoint that the first process has read reaches the others through a loader that
takes weights alone, which fairseq's wrapping of them is not.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import socket
from importlib.util import find_spec

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils
from omegaconf import open_dict

from fairseq_peft.checkpoints import start
from fairseq_peft.errors import InputError

logger = logging.getLogger(__name__)

#: What torchrun sets for each of its processes.
TORCHRUN = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")

#: Group of fairseq's config -> a flag of it -> the least that it may be.
LEAST = {
    "dataset": {
        "batch_size": 1,
        "max_tokens": 1,
        "batch_size_valid": 1,
        "max_tokens_valid": 1,
        "validate_interval": 1,
    },
    "checkpoint": {"save_interval": 1},
    "common": {"log_interval": 1, "seed": 0},
    "optimization": {"max_epoch": 0, "max_update": 0},
}
#: numpy has so many.
MOST_SEEDS = 2**32


def install() -> None:
    """Mend fairseq's functions; once."""
    if not hasattr(utils.call_main, "__wrapped__"):
        utils.call_main = _call_main(utils.call_main)
        checkpoint_utils.load_model_ensemble_and_task = _load_models(
            checkpoint_utils.load_model_ensemble_and_task
        )
        utils._broadcast_object_slow = _broadcast_object


def _call_main(original):
    """Called by every program of fairseq with its config, before any process is started."""

    @functools.wraps(original)
    def call_main(cfg, main, **kwargs):
        if "precision" in (cfg.model or ()):  # a model of the plugin, whatever the task
            check(cfg.common.amp, cfg.ema.store_ema)
            check_numbers(cfg)
            check_start(cfg)
            if getattr(cfg.optimizer, "_name", None) == "peft_adamw":
                check_casts("bf16" if cfg.common.bf16 else None)
            take_fp16(cfg)
            check_half(cfg.common)
        several = cfg.distributed_training.distributed_world_size > 1
        if several and (cfg.common.cpu or not torch.cuda.is_available()):
            prepare_cpu(cfg)
            if not cfg.distributed_training.distributed_no_spawn:
                return spawn(cfg, main, kwargs)
        return original(cfg, main, **kwargs)

    return call_main


def _load_models(original):
    """Called by the tools that read models, with the names that ``--path`` gives."""

    @functools.wraps(original)
    def load_model_ensemble_and_task(
        filenames, arg_overrides=None, task=None, strict=True, suffix="", num_shards=1, state=None
    ):
        if not suffix and num_shards == 1 and state is None:
            start.check_paths(filenames)
        return original(filenames, arg_overrides, task, strict, suffix, num_shards, state)

    return load_model_ensemble_and_task


def check(amp: bool, store_ema: bool) -> None:
    """Raise InputError where a flag of fairseq's would be ignored, or not do what it is for."""
    if amp:
        raise InputError(
            "--amp does nothing on a CPU, and is fairseq's own fp16 on a GPU, which this plugin "
            "does not know. Give --precision bf16 or auto: layers under autocast, weights in fp32."
        )
    if store_ema:
        raise InputError(
            "--store-ema keeps a second copy of the whole model, which no validation, adapter "
            "folder or report would read. Leave it out; fairseq-peft average makes the mean of a "
            "run's checkpoints."
        )


def check_numbers(cfg) -> None:
    """Raise InputError where a number of fairseq's flags is one that it divides by, or cannot
    count."""
    given = [
        (name, cfg[group][name], least)
        for group, names in LEAST.items()
        for name, least in names.items()
    ]
    frequencies = list(cfg.optimization.update_freq)
    if not frequencies:
        raise InputError("--update-freq is empty: expected 1 or more batches of an update.")
    given += [("update_freq", number, 1) for number in frequencies]
    for name, value, least in given:
        if value is not None and value < least:
            flag = f"--{name.replace('_', '-')} {value}"
            raise InputError(f"{flag}: expected {least} or more. Give that, or leave the flag out.")
    if cfg.common.seed >= MOST_SEEDS:
        raise InputError(f"--seed {cfg.common.seed}: expected less than {MOST_SEEDS}, 2 to the 32.")
    if cfg.dataset.batch_size is None and cfg.dataset.max_tokens is None:
        raise InputError(
            "--batch-size and --max-tokens are missing: give the rows of a batch, or its tokens."
        )


def check_start(cfg) -> None:
    """Raise InputError where the file that training begins from is not there. A task that tells
    random weights by a flag of its own (--from-scratch) decides itself."""
    sharded = cfg.distributed_training.use_sharded_state  # then each process has a file of its own
    if "from_scratch" not in (cfg.task or ()) and not sharded:
        start.check(cfg.checkpoint)


def check_casts(flag: str | None) -> None:
    """Raise InputError where ``flag``, fp16 or bf16, would cast the weights."""
    if flag:
        raise InputError(
            f"--{flag} would cast the weights and hide them from --optimizer peft_adamw. Give "
            f"--precision {flag}: layers under autocast, weights in fp32."
        )


def check_half(common) -> None:
    """Raise InputError where training with fairseq's own half precision, by its flags ``common``,
    asks for hardware that is not there."""
    if common.tpu and find_spec("torch_xla") is None:
        raise InputError(
            "--bf16 and --memory-efficient-bf16 are for GPUs: without one fairseq looks for a TPU. "
            "Give --precision bf16: layers under autocast, weights in fp32."
        )
    small = common.memory_efficient_fp16 or common.fp16_no_flatten_grads
    if common.fp16 and not small and not torch.cuda.is_available():
        raise InputError(
            "--fp16 with this --optimizer is for GPUs: fairseq puts the gradients on one. Give "
            "--memory-efficient-fp16, or --precision fp16 with --optimizer peft_adamw."
        )


def take_fp16(cfg) -> None:
    """``--fp16`` with the plugin's optimizer means ``--precision fp16`` of a model of the plugin:
    fairseq's own would cast the weights, and hide them from the optimizer."""
    if not cfg.common.fp16 or getattr(cfg.optimizer, "_name", None) != "peft_adamw":
        return
    with open_dict(cfg):
        cfg.common.fp16 = False
        cfg.model.precision = "fp16"
        if "fp16" in cfg.task:
            cfg.task.fp16 = False
    logger.info("--fp16 with --optimizer peft_adamw is --precision fp16: weights stay in fp32")


def prepare_cpu(cfg) -> None:
    """What fairseq would take for GPUs, for processes on CPUs."""
    training = cfg.distributed_training
    with open_dict(cfg):
        cfg.common.cpu = True
        training.distributed_backend = "gloo"
        if training.ddp_backend in ("pytorch_ddp", "c10d"):  # wants a GPU for each process
            training.ddp_backend = "legacy_ddp"
            logger.info("--ddp-backend legacy_ddp: the processes are on CPUs")
        if training.distributed_init_method is not None:
            return
        if all(name in os.environ for name in TORCHRUN):
            training.distributed_init_method = "env://"
            training.distributed_world_size = int(os.environ["WORLD_SIZE"])
            training.distributed_rank = int(os.environ["RANK"])
            training.device_id = 0
            training.distributed_no_spawn = True
        elif not training.distributed_no_spawn:
            training.distributed_init_method = f"tcp://127.0.0.1:{_free_port()}"


def spawn(cfg, main, kwargs) -> None:
    """A process for each rank from ``--distributed-rank`` on, or for ``--distributed-num-procs`` of
    them; ends with an error where one of them does."""
    training = cfg.distributed_training
    with open_dict(cfg):
        kwargs["start_rank"] = training.distributed_rank or 0
        training.distributed_rank = None  # each process counts from there
    number = training.distributed_world_size - kwargs["start_rank"]
    if training.distributed_num_procs > 1:
        number = min(number, training.distributed_num_procs)
    torch.multiprocessing.spawn(
        utils.distributed_main, args=(main, cfg, kwargs), nprocs=number, join=True
    )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _broadcast_object(obj, src_rank, group, dist_device):
    """fairseq's, but for the loader: the bytes come from a process of the same program, not from a
    file, and what they hold was read by the first process as any checkpoint is."""
    if utils.get_rank(group) == src_rank:
        buffer = io.BytesIO()
        torch.save(obj, buffer)
        content = torch.frombuffer(bytearray(buffer.getbuffer()), dtype=torch.uint8).to(dist_device)
        length = torch.tensor([len(content)], device=dist_device)
        utils.broadcast(length, src=src_rank, group=group)
        utils.broadcast(content, src=src_rank, group=group)
        return obj
    length = torch.zeros(1, dtype=torch.long, device=dist_device)
    utils.broadcast(length, src=src_rank, group=group)
    content = torch.empty(int(length), dtype=torch.uint8, device=dist_device)
    utils.broadcast(content, src=src_rank, group=group)
    return torch.load(io.BytesIO(content.cpu().numpy().tobytes()), weights_only=False)
