"""What starting from a large base takes: memory and processor seconds, up to the first batch.

    python benchmarks/start_memory.py --out runs/benchmark

Stock fairseq's full fine-tuning and this plugin's full and LoRA, from one random base of ``--arch``
without and with an optimizer's state, in turns, fp32, on the CPU. Memory is what belongs to the
process alone (``RssAnon`` of Linux, the highest of what is seen every 10 ms): pages of a file that
is mapped are not of it, for the system can take them back at any time. File: start_memory.json.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import harness
import steps
import train_rows
from harness import ROOT, Failed, range_of, spread, table

STARTED = "Start iterating over samples"
BASES = {"": "plain.pt", "-optimizer": "optimizer.pt"}


@dataclass(frozen=True)
class Contestant:
    """One line of the table.

    Attributes:
        software: stock-full, ours-full or ours-lora.
        base: file of the base.
    """

    name: str
    software: str
    base: str


CONTESTANTS = [
    Contestant(f"{software}{end}", software, base)
    for end, base in BASES.items()
    for software in ("stock-full", "ours-full", "ours-lora")
]


def write_bases(arch: str, folder: Path) -> tuple[int, int]:
    """Both files; returns the model's bytes, and its positions."""
    import torch

    from fairseq_peft.checkpoints import finetuned

    model = steps.build(steps.Setup(method="full", arch=arch, precision="fp32"))
    weights = {n: t for n, t in model.state_dict().items() if "classification_heads" not in n}
    plain = folder / BASES[""]
    finetuned.write(plain, {}, {"model": {"_name": "roberta"}}, weights)
    moments = [{name: torch.zeros_like(t) for name, t in weights.items()} for _ in range(2)]
    state = {**torch.load(plain, weights_only=True), "last_optimizer_state": moments}
    torch.save(state, folder / BASES["-optimizer"])
    num_bytes = sum(t.numel() * t.element_size() for t in weights.values())
    return num_bytes, model.max_positions()


def command(one: Contestant, arch: str, positions: int, work: Path) -> list[str]:
    """The words of a contestant's process."""
    if one.software == "stock-full":
        chosen = [
            *("--arch", arch, "--max-positions", str(positions), "--optimizer", "adam"),
            *("--task", "sentence_prediction", "--criterion", "sentence_prediction"),
            *("--num-classes", "2", "--init-token", str(train_rows.BOS)),
        ]
    else:
        chosen = [
            *("--user-dir", str(ROOT / "fairseq_peft"), "--optimizer", "peft_adamw"),
            *("--arch", f"{arch}_{one.software.rpartition('-')[2]}"),
            *("--task", "sentence_classification", "--criterion", "sentence_classification"),
        ]
    return [
        *(sys.executable, "-m", "fairseq_cli.train", str(work / "data"), *chosen, "--cpu"),
        *("--finetune-from-model", str(work / one.base), "--lr", "1e-5", "--batch-size", "1"),
        *("--required-batch-size-multiple", "1", "--num-workers", "0", "--disable-validation"),
        *("--no-save", "--save-dir", str(work / "run"), "--log-format", "simple"),
    ]


def watched(words: list[str], log: Path, threads: int) -> dict:
    """Peak memory and processor seconds of a run until it has its first batch.

    Raises:
        Failed: it ended before.
    """
    ticks = os.sysconf("SC_CLK_TCK")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    peak, seconds = 0, 0.0
    with open(log, "wb") as file:
        child = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        while STARTED not in log.read_text(errors="replace"):
            if child.poll() is not None:
                raise Failed(f"ended with status {child.returncode}: {log}")
            status = Path(f"/proc/{child.pid}/status").read_text().split("RssAnon:")
            if len(status) > 1:  # a process that has ended has none
                peak = max(peak, 1024 * int(status[1].split()[0]))
            used = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            seconds = sum(map(int, used)) / ticks
            time.sleep(0.01)
    finally:
        child.kill()
        child.wait()
    return {"peak_bytes": peak, "processor_s": seconds}


def main(argv=None) -> int:
    flags = harness.parser(__doc__, "ours-*", sizes=False)
    flags.add_argument("--arch", default="roberta_large", help="of the base (roberta_large)")
    args = flags.parse_args(argv)
    harness.check_positive(args, "repeats", "threads")
    chosen = harness.choose(CONTESTANTS, args.only)
    if args.list:
        print("\n".join(one.name for one in chosen))
        return 0
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        train_rows.write_data(work / "data", [[5, 6, 7]] * 8, [0, 1] * 4, None, steps.VOCAB)
        num_bytes, positions = write_bases(args.arch, work)

        def measure(one, repeat):
            return watched(command(one, args.arch, positions, work), work / "log", args.threads)

        runs, failures = harness.take_turns(chosen, args.repeats, measure)
    lines, entries = [], []
    for name, mine in runs.items():
        peak = spread([run["peak_bytes"] for run in mine.values()])
        seconds = spread([run["processor_s"] for run in mine.values()])
        times = range_of(peak, 2, 1 / num_bytes)
        lines.append([name, range_of(peak, scale=1e-6), times, range_of(seconds, 1)])
        entries.append({"name": name, "runs": harness.listed(mine)})
    result = harness.about(args, ("repeats", "threads", "arch"), {}, load)
    result.update(model_bytes=num_bytes, contestants=entries, failures=failures)
    print(table(["contestant", "peak MB", "x the model", "CPU s"], lines))
    print(f"\n{harness.machine_sentence(result)}")
    harness.write_json(args.out / "start_memory.json", result)
    return harness.tell_failures(list(failures.values()))


if __name__ == "__main__":
    harness.run_main(main)
