"""What the jobs of a sweep ask of Slurm: the flags ``--slurm-...`` of ``fairseq-peft sweep``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

from fairseq_peft.errors import InputError

#: Seconds before the time limit at which submitit requeues a job.
WARNING_S = 90


@dataclass
class Wishes:
    """What each job asks of Slurm; None: what the cluster gives to who does not ask.

    Attributes:
        minutes: the time limit.
        cpus, gpus: a job's.
        memory: as Slurm writes it, such as 8G.
        at_once: jobs of an array that run at the same time.
        max_requeues: how often a job may come to its time limit and go on.
        setup: lines of shell before the job.
        extra: more options of sbatch.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    minutes: int = 60
    cpus: int = 4
    gpus: int | None = None
    memory: str | None = None
    at_once: int | None = None
    max_requeues: int = 10
    setup: list = field(default_factory=list)
    extra: dict = field(default_factory=dict)

    def parameters(self) -> dict:
        """These wishes as submitit calls them."""
        given = {
            **{"partition": self.partition, "account": self.account, "qos": self.qos},
            **{"constraint": self.constraint, "time": self.minutes, "cpus_per_task": self.cpus},
            **{"gpus_per_node": self.gpus, "mem": self.memory, "array_parallelism": self.at_once},
            **{"setup": self.setup or None, "signal_delay_s": WARNING_S},
            "job_name": "fairseq-peft",
            # srun does not take this from sbatch since Slurm 22.05.
            "srun_args": [f"--cpus-per-task={self.cpus}"],
            # Whatever the cluster's default is, a job that is preempted goes on.
            "additional_parameters": {"requeue": True, **self.extra},
        }
        return {name: value for name, value in given.items() if value is not None}


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fairseq-peft sweep --launcher slurm``; all are None where not given."""
    group = parser.add_argument_group("with --launcher slurm (docs/clusters.md)")
    text = group.add_argument
    text("--slurm-partition", metavar="NAME", help="partition (the cluster's default)")
    text("--slurm-account", metavar="NAME", help="account (the user's default)")
    text("--slurm-qos", metavar="NAME", help="quality of service")
    text("--slurm-constraint", metavar="TEXT", help="features that nodes must have, such as a100")
    text("--slurm-time", type=int, metavar="MINUTES", help="time limit of a job (60)")
    text("--slurm-cpus", type=int, metavar="N", help="CPUs of a job (4); --threads is as many")
    text("--slurm-gpus", type=int, metavar="N", help="GPUs of a job (none)")
    text("--slurm-mem", metavar="SIZE", help="memory of a job, such as 8G")
    text("--slurm-array-parallelism", type=int, metavar="N", help="jobs of an array at once (all)")
    text(
        "--slurm-max-requeues",
        type=int,
        metavar="N",
        help="how often a job may come to its time limit and go on (10)",
    )
    text(
        "--slurm-setup",
        action="append",
        metavar="LINE",
        help='a line of shell before each job, such as "module load cuda"',
    )
    text(
        "--slurm-extra",
        action="append",
        metavar="NAME=VALUE",
        help="another option of sbatch, such as exclude=node7",
    )


def check_unused(args: argparse.Namespace) -> None:
    """Raise InputError where something is asked of Slurm that does not run the jobs."""
    for name, value in vars(args).items():
        if name.startswith("slurm_") and value is not None:
            raise InputError(
                f"--{name.replace('_', '-')} would be ignored: the runs are processes of this "
                "machine. Give --launcher slurm, too."
            )


def wishes(args: argparse.Namespace) -> Wishes:
    """What was asked for.

    Raises:
        InputError: it cannot be, or something that was given would be ignored.
    """
    for name, least in [("time", 3), ("cpus", 1), ("gpus", 1), ("array_parallelism", 1)]:
        value = getattr(args, f"slurm_{name}")
        if value is not None and value < least:
            raise InputError(
                f"--slurm-{name.replace('_', '-')} {value}: give {least} or more"
                + (f" minutes: a job is warned {WARNING_S} s before." if name == "time" else ".")
            )
    if args.slurm_max_requeues is not None and args.slurm_max_requeues < 0:
        raise InputError(f"--slurm-max-requeues {args.slurm_max_requeues}: give 0 or more.")
    extra = {}
    for one in args.slurm_extra or []:
        name, sign, value = one.lstrip("-").partition("=")
        if not name:
            raise InputError(f"--slurm-extra {one!r}: expected NAME=VALUE, such as exclude=node7.")
        if name in extra:
            raise InputError(f"--slurm-extra {name} was given twice. Give it once.")
        extra[name] = value if sign else True
    given = {
        **{"partition": args.slurm_partition, "account": args.slurm_account},
        **{"qos": args.slurm_qos, "constraint": args.slurm_constraint, "minutes": args.slurm_time},
        **{"cpus": args.slurm_cpus, "gpus": args.slurm_gpus, "memory": args.slurm_mem},
        **{"at_once": args.slurm_array_parallelism, "max_requeues": args.slurm_max_requeues},
        **{"setup": args.slurm_setup, "extra": extra},
    }
    return Wishes(**{name: value for name, value in given.items() if value is not None})
