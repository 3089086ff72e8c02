"""How long runs take as members of one process, against the same runs by themselves.

    python benchmarks/members_speed.py --base model.pt --data data-bin/cls-books

Both train the same runs, which differ in seed: one after the other, and as members of one process,
both as children of a worker that has done its imports before the clock starts, as in
scripts/sweep.sh. They take turns; each repeat gives one ratio. The clock is that of the wall, from
the first command to the last file.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import ROOT, call, range_of, spread, write_json

CLI = [sys.executable, "-m", "fairseq_peft.cli"]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True, help="checkpoint to start from")
    parser.add_argument("--data", required=True, help="folder that prepare_data.sh made")
    parser.add_argument("--methods", default="head_only,lora,adapter")
    parser.add_argument("--members", default="1,4,8", help="numbers of runs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--train-subset", default="train")
    parser.add_argument("--valid-subset", default="valid,test")
    parser.add_argument("--together", default="auto", help="as for sweep-members")
    parser.add_argument("--same-seed", action="store_true", help="runs differ in learning rate")
    parser.add_argument("--json", help="file for the figures")
    return parser.parse_args()


def command(args, method: str, number: int, folder: Path) -> list[str]:
    """The arguments of one run's fairseq-train."""
    seed = 1 if args.same_seed else number + 1
    words = f"""{args.data} --user-dir {ROOT / "fairseq_peft"} --arch roberta_small_{method}
        --task sentence_classification --criterion sentence_classification
        --finetune-from-model {args.base} --optimizer peft_adamw --lr {1e-3 * (1 + number)}
        --lr-scheduler fixed --clip-norm 1.0 --max-epoch {args.epochs} --batch-size 16
        --seed {seed} --precision {args.precision} --train-subset {args.train_subset}
        --valid-subset {args.valid_subset} --best-checkpoint-metric accuracy
        --maximize-best-checkpoint-metric --no-epoch-checkpoints --save-dir {folder}/{number}
        --num-workers 0 --log-format simple --log-interval 50"""
    return words.split()


def by_themselves(commands, worker: str, environ) -> None:
    for words in commands:
        call([*CLI, "worker", worker, "train", *words], environ)


def as_members(commands, together: str, worker: str, environ) -> None:
    text = "\n".join(shlex.join(words) for words in commands)
    call([*CLI, "worker", worker, "sweep-members", "--together", together, "-"], environ, text)


def main() -> None:
    args = parse_args()
    environ = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "PYTHONPATH": str(ROOT)}
    found = []
    with tempfile.TemporaryDirectory(prefix="members.") as scratch:
        address = os.path.join(scratch, "worker")
        worker = subprocess.Popen([*CLI, "worker", address], env=environ, stderr=subprocess.DEVNULL)
        try:
            while not os.path.exists(address):
                if worker.poll() is not None:
                    raise SystemExit("the worker did not start")
                time.sleep(0.05)
            for method in args.methods.split(","):
                for number in map(int, args.members.split(",")):
                    found.append(measure(args, method, number, Path(scratch), address, environ))
                    print(row(found[-1]), flush=True)
        finally:
            worker.terminate()
            worker.wait()
    if args.json:
        write_json(Path(args.json), found)


def measure(args, method, number, scratch, address, environ) -> dict:
    """Seconds of both ways, repeat by repeat."""
    seconds = {"separate": [], "members": []}
    for repeat in range(args.repeats):
        for way in seconds if repeat % 2 == 0 else reversed(seconds):
            folder = scratch / f"{method}-{number}-{repeat}-{way}"
            commands = [command(args, method, n, folder) for n in range(number)]
            start = time.perf_counter()
            if way == "separate":
                by_themselves(commands, address, environ)
            else:
                as_members(commands, args.together, address, environ)
            seconds[way].append(time.perf_counter() - start)
    pairs = zip(seconds["separate"], seconds["members"])
    return {
        "method": method,
        "num_members": number,
        "threads": args.threads,
        "precision": args.precision,
        "together": args.together,
        "same_seed": args.same_seed,
        **seconds,
        "ratios": [separate / together for separate, together in pairs],
    }


def row(found: dict) -> str:
    """One line of the table."""
    separate, members = (range_of(spread(found[way]), 1) for way in ("separate", "members"))
    return (
        f"{found['method']:<10} {found['num_members']:>3} members  separate {separate:>20} s  "
        f"members {members:>20} s  {range_of(spread(found['ratios']), 2)} times"
    )


if __name__ == "__main__":
    main()
