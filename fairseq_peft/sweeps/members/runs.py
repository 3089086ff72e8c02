"""The runs of a sweep as members of a group: their command lines, checks, and logs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from fairseq_peft import compiling
from fairseq_peft.errors import InputError
from fairseq_peft.sweeps.members.group import Group

#: Flags of fairseq's whose service takes the runs of one process for one.
ONE_A_PROCESS = ("wandb_project", "azureml_logging", "aim_repo")


def train_all(commands: list[list[str]], together: str = "auto") -> dict[str, str]:
    """Train all; each logs to train.log in its save directory.

    Args:
        commands: the arguments of fairseq-train, for each run.
        together: one of ``waves.TOGETHER``.

    Returns:
        save directory -> why the run failed, for those that did.

    Raises:
        InputError: the runs cannot be members of one group.
    """
    configs = [parse(words) for words in commands]
    check(configs)
    with contextlib.ExitStack() as files:
        group = Group(together)
        for words, cfg in zip(commands, configs):
            os.makedirs(cfg.checkpoint.save_dir, exist_ok=True)
            path = Path(cfg.checkpoint.save_dir) / "train.log"
            log = files.enter_context(open(path, "a", buffering=1, encoding="utf-8"))
            group.add(cfg, words, log)
        group.run()
        return {
            cfg.checkpoint.save_dir: turn.error
            for cfg, turn in zip(configs, group.turns)
            if turn.error
        }


def parse(words: list[str]):
    """fairseq's config of the command line ``words``."""
    return convert_namespace_to_omegaconf(
        options.parse_args_and_arch(options.get_training_parser(), input_args=words)
    )


def check(configs: list) -> None:
    """Raise InputError unless the runs can be members of one group."""
    taken = set()
    for cfg in configs:
        directory = os.path.realpath(cfg.checkpoint.save_dir)
        if directory in taken:
            raise InputError(f"Two members have --save-dir {directory}. Give each its own.")
        taken.add(directory)
        if getattr(cfg.task, "_name", None) != "sentence_classification":
            raise InputError(
                f"--task {getattr(cfg.task, '_name', None)} cannot be a member: give --task "
                "sentence_classification, or run it with fairseq-train."
            )
        choice = compiling.of(cfg.model)
        if choice != "off":
            raise InputError(
                f"Members share their passes, whose pieces differ from batch to batch: no graph of "
                f"--compile {choice} would serve twice. Leave it out, or run it with fairseq-train."
            )
        for name in ONE_A_PROCESS:
            if given := getattr(cfg.common, name, None):
                flag = f"--{name.replace('_', '-')}" + ("" if given is True else f" {given}")
                raise InputError(
                    f"{flag} knows one run a process, and members share theirs: each would log "
                    "into the others' run. Use --tensorboard-logdir, or run it with fairseq-train."
                )
        if cfg.distributed_training.distributed_world_size > 1:
            raise InputError(
                "Members share one device, and --distributed-world-size is "
                f"{cfg.distributed_training.distributed_world_size}: give 1."
            )
