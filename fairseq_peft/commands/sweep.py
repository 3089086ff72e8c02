"""Fine-tune cells x seeds, several runs at once, each cell's learning rate picked on valid.

`fairseq-peft sweep --data data-bin/cls-books --base model.pt --jobs 2`: a cell is start/method,
such as pretrained/lora; its method may be several with + between, or a name of your own, whose
flags --cell-flags says. Where a cell has several learning rates, each runs once with the first
seed, under RUNS-grid; the best on valid, by --metric, is taken, and its run is the first seed's
run; then the other seeds run with it. Everything that can be is checked before the first run. What
is done is skipped, so a sweep that was interrupted goes on. Failures are listed at the end.
scripts/sweep.sh is the same with variables, on this machine; with --launcher slurm each run is a
job of a cluster, requeued from its last epoch when it is preempted (docs/clusters.md).
"""

from __future__ import annotations

import argparse
import os
import sys

from fairseq_peft.errors import InputError
from fairseq_peft.sweeps.cells import check_twice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from fairseq_peft.sweeps import arguments, slurm_arguments
    from fairseq_peft.sweeps.cells import FROM_SCRATCH, SCRATCH, USUAL

    text = parser.add_argument
    text(
        "--base",
        metavar="BASE",
        help="checkpoint, or folder of a model of Hugging Face's, to start from, for the cells "
        "pretrained/...",
    )
    text(
        "--cells",
        help=f"start/method each ({' '.join(USUAL)}; on a base of Hugging Face's without those "
        "that it cannot have)",
    )
    text("--seeds", default="1 2 3", help="the first one tunes the learning rate (1 2 3)")
    text(
        "--rates",
        action="append",
        default=[],
        metavar="NAME=RATES",
        help='learning rates of the cell pretrained/NAME, such as lora="1e-3 2e-3" (what '
        f"fairseq-peft methods says); {SCRATCH}=RATES: of every cell from scratch "
        f"({' '.join(FROM_SCRATCH)})",
    )
    text(
        "--cell-flags",
        action="append",
        default=[],
        metavar="NAME=FLAGS",
        help='flags of the cells called NAME, such as pissa="--peft lora --lora-init pissa"',
    )
    text("--jobs", type=int, help="runs at once (1)")
    text("--members", type=int, default=1, help="runs of a cell in one process (1)")
    text("--threads", type=int, help="CPU threads a run (all cores, shared among the jobs)")
    text(
        "--launcher",
        choices=("local", "slurm"),
        default="local",
        help="where runs are started: on this machine, or as jobs of a Slurm cluster (local)",
    )
    text("--every", type=float, default=10, help="seconds between progress lines (10)")
    text(
        "--worker",
        default="start",
        help="start: one process imports fairseq, and its forks train; none: each run is a "
        "process of its own; or where one listens (start)",
    )
    arguments.add(parser)
    slurm_arguments.add(parser)
    arguments.add_flags(parser)


def run(args: argparse.Namespace) -> int:
    from fairseq_peft.sweeps import arguments, cells, slurm_arguments, start
    from fairseq_peft.sweeps.sweep import Sweep

    wanted = None
    if args.launcher == "slurm":
        _check_slurm(args)
        wanted = slurm_arguments.wishes(args)
        jobs, threads = wanted.at_once, args.threads or wanted.cpus
    else:
        slurm_arguments.check_unused(args)
        jobs = 1 if args.jobs is None else args.jobs
        if jobs < 1:
            raise InputError(f"JOBS={jobs} is no number of runs: give 1 or more.")
        threads = args.threads or -(-arguments.cores() // jobs)
    # Before anything that reads them is imported; the logs of runs say what ended them.
    os.environ.update(OMP_NUM_THREADS=str(threads), LOGLEVEL="INFO")
    seeds = _seeds(args.seeds)
    args.precision = start.precision(args.precision)
    knobs = arguments.knobs(
        args, threads=threads, method="", label="", base=args.base, seed=0, lr=""
    )
    names = cells.usual(args.base) if args.cells is None else args.cells.split()
    read = cells.read(names, cells.named(args.cell_flags, "FLAGS"), cells.named(args.rates, "LR"))
    sweep = Sweep(
        knobs=knobs,
        cells=read,
        seeds=seeds,
        jobs=jobs or sum(len(cell.rates) + len(seeds) - 1 for cell in read),
        members=args.members,
        change=arguments.change(args),
        queued=wanted is not None,
    )
    if args.dry_run:
        if wanted:
            sys.stdout.write(_submission(sweep, wanted))
        sys.stdout.write("".join(f"{line}\n" for line in sweep.dry_run()))
        return 0
    return _run(sweep, args, wanted)


def _check_slurm(args):
    from fairseq_peft.precision import VARIABLE

    if args.jobs is not None:
        raise InputError("--jobs is about this machine. Give --slurm-array-parallelism.")
    if args.worker not in ("start", "none"):
        raise InputError(f"--worker {args.worker} is of this machine, and Slurm's jobs are not.")
    if args.precision == "auto" and VARIABLE not in os.environ:
        raise InputError(
            "--precision auto asks this machine, and Slurm runs the jobs on others. Give fp32 or "
            "bf16 (fp16 for GPUs without bf16)."
        )


def _submission(sweep, wanted):
    """What sbatch will get first, as a dry run shows it."""
    from fairseq_peft.sweeps import slurm

    schedule = sweep.schedule()
    num_jobs = 0
    while schedule.next():
        num_jobs += 1
    if not num_jobs:
        return ""
    text = slurm.script(sweep.knobs.runs, wanted, num_jobs)
    return f"# what sbatch gets for the first {num_jobs} of them\n{text}\n"


def _run(sweep, args, wanted) -> int:
    import contextlib

    from fairseq_peft.sweeps import finetune, launchers, progress, slurm, start

    with finetune.ending_on_sigterm(), contextlib.ExitStack() as stack:
        try:
            launcher = launchers.Local()
            if wanted:
                executor = slurm.executor(sweep.knobs.runs, wanted)
                launcher = slurm.Slurm(sweep.knobs.runs, executor)
            schedule = sweep.schedule()
            sweep.pick(schedule)
            worker = None if args.worker in ("start", "none") else args.worker
            if schedule.waiting():
                start.imports(sweep.knobs.threads)
                if args.worker == "start" and not wanted:
                    worker = stack.enter_context(start.forked_worker())
                sweep.check(schedule)
                sweep.record()
            view = stack.enter_context(progress.view(schedule, args.every))
            sweep.run(schedule, launcher, view, worker)
            view.end()
        except (SystemExit, KeyboardInterrupt):  # SIGTERM, Ctrl-C
            return 130
    for told in failures(schedule):
        sys.stderr.write(f"failed: {told}\n")
    if schedule.failed:
        runs = sweep.knobs.runs
        raise InputError(
            f"{len(schedule.failed)} of {schedule.num_runs} runs failed; their logs are "
            f"{runs}/logs and {runs}-grid/*/logs. Run again to retry."
        )
    return 0


def failures(schedule):
    """A line for each run that failed, and for each cell that was left for it."""
    for run, why in schedule.failed.items():
        yield f"{run}: {why}"
    for cell, number in schedule.not_started.items():
        if number:
            yield f"{cell}: {number} more run{'s' * (number > 1)} not started, because of that"


def _seeds(text):
    try:
        seeds = [int(word) for word in text.split()]
    except ValueError:
        raise InputError(
            f"--seeds '{text}' (SEEDS): seeds are whole numbers, such as 1 2 3."
        ) from None
    if not seeds:
        raise InputError("A sweep needs seeds, such as 1 2 3.")
    check_twice(seeds, "seed")
    return seeds
