"""A sweep of methods x seeds: ``scripts/sweep.sh`` against stock-style runs one after the other.

    python benchmarks/sweep_speed.py --data data-bin/cls-books --base model.pt --out runs/speed

Both sides train and evaluate the same rows with the same methods, batch size, epochs and seeds, and
write their checkpoints and results. ``sweep.sh`` runs as many processes as there are threads, one
thread each, in bf16. The other side is stock-style (stock_style.py): one process after the other,
all threads, fp32. Of its runs only ``--measured`` a method are made, since nothing but the seed
tells one from the next; the rest is their mean, and the output says so.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

from harness import HERE, ROOT, call, write_json


def script(name: str, *words: str, **variables) -> str:
    """Run scripts/NAME; its knobs are ``variables``. Returns what it printed."""
    environ = {**os.environ, **{key: str(value) for key, value in variables.items()}}
    return call(["bash", ROOT / "scripts" / name, *words], environ)


def our_sweep(flags, methods, seeds) -> float:
    """Seconds of one sweep.sh over everything."""
    variables = {f"LR_{method.upper()}": "1e-3" for method in methods}
    start = time.perf_counter()
    script(
        "sweep.sh",
        DATA=flags.data.resolve(),
        BASE=flags.base.resolve(),
        RUNS=flags.out.resolve() / "ours",
        CELLS=" ".join(f"pretrained/{method}" for method in methods),
        SEEDS=" ".join(map(str, seeds)),
        EPOCHS=flags.epochs,
        PRECISION="bf16",
        JOBS=flags.threads,
        THREADS=1,
        **variables,
    )
    return time.perf_counter() - start


def stock_run(flags, method: str, seed: int) -> float:
    """Seconds of one stock-style process."""
    printed = script(
        "finetune.sh",
        "--dry-run",
        DATA=flags.data.resolve(),
        BASE=flags.base.resolve(),
        RUNS=flags.out.resolve() / "stock",
        METHOD=method,
        SEED=seed,
        LR="1e-3",
        EPOCHS=flags.epochs,
        PRECISION="fp32",
        THREADS=flags.threads,
    ).splitlines()[0]
    words = shlex.split(printed)
    place = words.index("fairseq_cli.train")
    command = [words[0], str(HERE / "stock_style.py"), *words[place + 1 :], "--full-checkpoints"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(flags.threads)}
    start = time.perf_counter()
    call(command, environment)
    return time.perf_counter() - start


def main(argv=None):
    flags = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    flags.add_argument("--data", type=Path, required=True, help="folder of prepare_data.sh")
    flags.add_argument("--base", type=Path, required=True, help="checkpoint to start from")
    flags.add_argument(
        "--out", type=Path, required=True, help="folder for the runs, and the result"
    )
    flags.add_argument("--methods", default="full,lora,adapter", help="with commas between")
    flags.add_argument("--seeds", type=int, default=5, help="how many")
    flags.add_argument("--epochs", type=int, default=1)
    flags.add_argument("--measured", type=int, default=1, help="stock-style runs of each method")
    flags.add_argument("--threads", type=int, default=os.cpu_count())
    flags = flags.parse_args(argv)
    if any((flags.out / side).exists() for side in ("ours", "stock")):
        sys.exit(f"{flags.out} holds runs, which would be skipped: give an empty --out.")
    methods, seeds = flags.methods.split(","), range(1, flags.seeds + 1)
    stock = {m: [stock_run(flags, m, s) for s in seeds[: flags.measured]] for m in methods}
    ours = our_sweep(flags, methods, seeds)
    whole_stock = sum(flags.seeds * sum(runs) / len(runs) for runs in stock.values())
    for method, runs in stock.items():
        listed = ", ".join(f"{seconds:.0f}" for seconds in runs)
        print(f"stock-style, {method}: {listed} s a run")
    print(
        f"{len(methods)} methods x {flags.seeds} seeds, {flags.epochs} epoch(s): stock-style "
        f"{whole_stock:.0f} s (told from {sum(map(len, stock.values()))} runs), sweep.sh "
        f"{ours:.0f} s: {whole_stock / ours:.1f} times as fast"
    )
    result = {"flags": vars(flags), "stock_s": stock, "stock_whole_s": whole_stock, "ours_s": ours}
    write_json(flags.out / "sweep_speed.json", result)


if __name__ == "__main__":
    main()
