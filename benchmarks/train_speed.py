"""How fast is training? Stock fairseq, this plugin, and Hugging Face with PEFT, side by side.

    python benchmarks/train_speed.py --out runs/benchmark

Every contestant is the real program in a process of its own: ``fairseq-train`` without and with
this plugin, and Hugging Face's ``Trainer``. All see the same rows (checked by a hash of what each
was fed), and have the same batch size, dropout rates, classifier, weight decay, gradient clipping
and number of threads; they take turns, and a ratio is taken within one repeat. What differs stands
in the table: method, precision, and how batches are drawn, at random or by length.

``--steps`` steps are on the clock, after ``--warmup`` steps; there are as many rows as these steps
take, so that every contestant passes over all of them. Rows are cut where a prompt leaves no room.
Real tokens are those of the text, without padding and prompt.

Files in the folder ``--out``: train_speed.json, train_speed.png, and logs/.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import harness
import train_report
import train_rows
from harness import HERE, ROOT, Failed, InputError, ratios, size_flags, spread, start
from train_report import BOTTLENECK, PARTS, PRODUCT, PROMPT, RANK

from fairseq_peft.text.binarised import PAD

DROPOUT = 0.1
METHODS = ("full", "head_only", "lora", "adapter", "prompt")


# Contestants


@dataclass(frozen=True)
class Contestant:
    """One line of the table.

    Attributes:
        software: stock (fairseq alone), ours (fairseq with this plugin) or hf.
        batches: random, or by length.
        flags: more flags of fairseq-train.
    """

    name: str
    software: str
    method: str
    precision: str
    batches: str
    flags: tuple = ()


def contestants(device: str) -> list[Contestant]:
    """All of them; the first is what the others are compared with."""
    found = [Contestant("stock-full-fp32", "stock", "full", "fp32", "random")]
    if device == "cuda":
        found.append(Contestant("stock-full-fp16", "stock", "full", "fp16", "random", ("--fp16",)))
    for precision in ("fp32", "bf16"):
        for method in METHODS:
            found.append(
                Contestant(f"ours-{method}-{precision}", "ours", method, precision, "by length")
            )
    return [
        *found,
        Contestant("hf-full-fp32", "hf", "full", "fp32", "random"),
        Contestant("hf-full-bf16", "hf", "full", "bf16", "by length"),
        Contestant("hf-lora-bf16", "hf", "lora", "bf16", "by length"),
    ]


def variant(text: str) -> Contestant:
    """``NAME=METHOD PRECISION [FLAGS]``: one more contestant of ours."""
    name, _, rest = text.partition("=")
    words = shlex.split(rest)
    if not name or len(words) < 2 or words[1] not in ("fp32", "bf16"):
        raise InputError(
            f"--variant {text!r} is not NAME=METHOD PRECISION [FLAGS]: give such as "
            "'wide=lora bf16 --lora-rank 64'."
        )
    return Contestant(name, "ours", words[0], words[1], "by length", tuple(words[2:]))


# Commands


def base_command(args, sizes: dict, work: Path) -> list[str]:
    """Stock fairseq-train, one update of masked_lm: the checkpoint that fairseq's start from."""
    return [
        *(sys.executable, "-m", "fairseq_cli.train", str(work / "data" / "input0")),
        *("--task", "masked_lm", "--criterion", "masked_lm", "--arch", "roberta"),
        *size_flags(sizes),
        *("--tokens-per-sample", str(sizes["max_positions"]), "--sample-break-mode", "none"),
        *("--batch-size", "1", "--required-batch-size-multiple", "1", "--max-update", "1"),
        *("--optimizer", "adam", "--lr", "1e-5", "--num-workers", "0", "--seed", "1"),
        *("--disable-validation", "--no-epoch-checkpoints", "--no-save-optimizer-state"),
        *("--save-dir", str(work / "base"), "--log-format", "simple"),
        *(["--cpu"] if args.device == "cpu" else []),
    ]


def command(one: Contestant, args, sizes: dict, work: Path, repeat: int, hf: str | None):
    """The words of a contestant's process, without the moment of its start."""
    watch = [
        *("--warmup", str(args.warmup), "--steps", str(args.steps), "--pad", str(PAD)),
        *("--device", args.device, *(["--split"] if args.parts == "yes" else [])),
    ]
    if one.software == "hf":
        return [
            *(hf, str(HERE / "train_hf.py"), *watch),
            *("--base", str(work / "hf"), "--rows", str(work / "data" / "rows.npz")),
            *("--output", str(work / "run"), "--method", one.method, "--precision", one.precision),
            *("--batch-size", str(args.batch_size), "--rank", str(RANK), "--seed", str(repeat)),
            *(["--by-length"] if one.batches == "by length" else []),
        ]
    if one.software == "stock":
        chosen = [
            *("--arch", "roberta", "--task", "sentence_prediction"),
            *("--criterion", "sentence_prediction", "--num-classes", str(sizes["classes"])),
            *(
                "--init-token",
                str(train_rows.BOS),
                "--optimizer",
                "adam",
                "--adam-betas",
                "(0.9, 0.999)",
            ),
        ]
    else:
        knobs = {
            "lora": ("--lora-rank", str(RANK)),
            "adapter": ("--adapter-bottleneck", str(BOTTLENECK)),
            "prompt": ("--prompt-num-tokens", str(PROMPT)),
        }
        chosen = [
            *("--user-dir", str(ROOT / "fairseq_peft"), "--arch", "roberta_small"),
            *("--peft", one.method, "--precision", one.precision, *knobs.get(one.method, ())),
            *("--task", "sentence_classification", "--criterion", "sentence_classification"),
            *("--optimizer", "peft_adamw"),
        ]
    return [
        *(sys.executable, str(HERE / "train_fairseq.py"), *watch, "--"),
        *(str(work / "data"), *chosen, *size_flags(sizes)),
        *("--finetune-from-model", str(work / "base" / "checkpoint_last.pt")),
        *("--weight-decay", "0.01", "--lr", "1e-5", "--lr-scheduler", "fixed", "--clip-norm", "1"),
        *("--batch-size", str(args.batch_size), "--required-batch-size-multiple", "1"),
        *("--max-update", str(args.warmup + args.steps), "--seed", str(repeat)),
        *("--num-workers", "0", "--disable-validation", "--no-save"),
        *("--save-dir", str(work / "run"), "--log-format", "simple"),
        *(["--cpu"] if args.device == "cpu" else []),
        *one.flags,
    ]


# Summary


def speed(run: dict) -> float:
    return run["real_tokens"] / run["seconds"]


def speeds(runs: dict) -> dict[int, float]:
    """Repeat -> real tokens/s of one contestant."""
    return {repeat: speed(run) for repeat, run in runs.items()}


def told(name: str, run: dict) -> str:
    """The line about one measurement."""
    return f"{name:<20} {speed(run):8,.0f} real tokens/s"


def summarise(chosen: list[Contestant], runs: dict, products: list[dict], floor: list[dict]):
    """One entry a contestant.

    Args:
        runs: name -> repeat -> what the process measured.
        products: GFLOP/s by precision, one a repeat.
    """
    reference = chosen[0].name
    found = []
    for one in chosen:
        mine = runs.get(one.name, {})
        if not mine:
            continue
        rival = "hf-full-bf16" if one.method == "full" else "hf-lora-bf16"
        each = [mine[repeat] for repeat in sorted(mine)]
        steps = [run["seconds"] / run["steps"] for run in each]
        flop = [
            entry["flop_per_token"]
            for entry in floor
            if (entry["method"], entry["scope"]) == (one.method, "every layer")
        ]
        peak = [speed(mine[k]) * flop[0] / 1e9 / products[k - 1][one.precision] for k in mine
                if flop and one.precision in products[k - 1]]  # fmt: skip
        entry = {
            "name": one.name,
            "software": one.software,
            "method": one.method,
            "precision": one.precision,
            "batches": one.batches,
            "flags": list(one.flags),
            "trainable_parameters": each[0]["trainable_parameters"],
            "versions": each[0]["versions"],
            "real_tokens_per_s": spread([speed(run) for run in each]),
            "padded_tokens_per_s": spread([run["padded_tokens"] / run["seconds"] for run in each]),
            "step_ms": spread([1000 * step for step in steps]),
            "parts_ms": None,
            "startup_s": spread([run["startup_s"] for run in each]),
            "peak_rss_bytes": spread([run["peak_rss_bytes"] for run in each]),
            "peak_device_bytes": spread(
                [run["peak_device_bytes"] for run in each if run["peak_device_bytes"] is not None]
            ),
            "ratio_to_reference": ratios(speeds(mine), speeds(runs.get(reference, {}))),
            "rival": rival if rival in runs else None,
            "ratio_to_rival": ratios(speeds(mine), speeds(runs.get(rival, {}))),
            "share_of_floor": spread(peak),
            "runs": harness.listed(mine),
        }
        if all(run["parts_s"] is not None for run in each):
            entry["parts_ms"] = {
                part: spread([1000 * run["parts_s"][part] / run["steps"] for run in each])
                for part in PARTS
            }
        found.append(entry)
    return found


def check_rows(runs: dict, wanted: str, threads: int) -> list[str]:
    """One sentence for each process that saw other rows than it was given, or had other threads."""
    found = []
    for name, mine in runs.items():
        for repeat, run in mine.items():
            if run["rows_hash"] != wanted:
                found.append(f"{name}, repeat {repeat}: it saw other rows than those of the data.")
            if run["threads"] != threads:
                found.append(
                    f"{name}, repeat {repeat}: it ran with {run['threads']} threads, not {threads}."
                )
    return found


# The run


def read_args(argv=None):
    flags = harness.parser(__doc__, "stock-*,*-lora-*")
    add = flags.add_argument
    add("--steps", type=int, default=40, help="steps on the clock (40)")
    add("--warmup", type=int, default=5, help="steps before them (5)")
    add("--batch-size", type=int, default=8, help="rows a step (8)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="cuda is untested (cpu)")
    add("--data", type=Path, help="a folder of prepare_data.sh, instead of synthetic rows")
    add(
        "--variant",
        action="append",
        default=[],
        help="one more contestant: 'NAME=METHOD PRECISION [FLAGS of fairseq-train]'",
    )
    add(
        "--parts",
        choices=("yes", "no"),
        help="time the parts of a step (yes on a CPU, no on a GPU, where it slows the step)",
    )
    add("--vocab", type=int, default=32_000, help="with special tokens; synthetic rows only")
    args = flags.parse_args(argv)
    harness.check_positive(args, "repeats", "steps", "warmup", "batch_size", "threads")
    if args.max_positions < PROMPT + 10:
        raise InputError(f"--max-positions {args.max_positions}: give {PROMPT + 10} or more.")
    args.parts = args.parts or ("yes" if args.device == "cpu" else "no")
    return args


def prepare(args, chosen, work: Path, logs: Path, hf: str | None):
    """Data and bases: (sizes of the model, what is to know of the data)."""
    count, limit = args.steps * args.batch_size, args.max_positions - PROMPT - 2
    if args.data:
        rows, labels = train_rows.real_rows(args.data, count, limit)
    else:
        rows, labels = train_rows.synthetic_rows(count, limit, args.vocab)
    data = train_rows.write_data(work / "data", rows, labels, args.data, args.vocab)
    vocab = 5 + train_rows.count_lines(work / "data" / "input0" / "dict.txt")
    classes = train_rows.count_lines(work / "data" / "label" / "dict.txt", "madeupword")
    sizes = harness.model_sizes(args, vocab, classes, DROPOUT)
    libraries = {one.software for one in chosen}
    if libraries & {"stock", "ours"}:
        start(base_command(args, sizes, work), logs / "base.log", args.threads)
    if "hf" in libraries:
        words = [hf, str(HERE / "train_hf.py"), "--make-base", str(work / "hf")]
        start([*words, "--sizes", json.dumps(sizes)], logs / "base-hf.log", args.threads)
    return sizes, data


def main(argv=None) -> int:
    args = read_args(argv)
    every = [*contestants(args.device), *map(variant, args.variant)]
    chosen = harness.choose(every, args.only)
    if args.list:
        print("\n".join(one.name for one in chosen))
        return 0
    chosen, hf, left_out = harness.leave_out_hf(chosen)
    logs, load, products = args.out / "logs", os.getloadavg()[0], []
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="train-speed-") as folder:
        work = Path(folder)
        try:
            sizes, data = prepare(args, chosen, work, logs, hf)
        except Failed as error:
            raise InputError(f"The checkpoint to start from could not be made: {error}") from None

        def measure_products(repeat):
            words = [sys.executable, str(HERE / "products.py"), "--device", args.device, "--shape"]
            words += map(str, PRODUCT)
            products.append(json.loads(start(words, logs / "products.log", args.threads)))

        def measure(one, repeat):
            words = command(one, args, sizes, work, repeat, hf)
            try:
                return harness.measured(words, logs / f"{one.name}-{repeat}.log", args.threads)
            finally:
                shutil.rmtree(work / "run", ignore_errors=True)

        runs, failures = harness.take_turns(chosen, args.repeats, measure, measure_products, told)

    floor = train_report.floors(sizes, data["mean_length"])
    names = ("repeats", "steps", "warmup", "batch_size", "threads", "device")
    result = {
        **harness.about(args, names, sizes, load),
        "data": data,
        "reference": chosen[0].name,
        "products": products,
        "floors": floor,
        "contestants": summarise(chosen, runs, products, floor),
        "left_out": left_out,
        "failures": [
            *failures.values(),
            *check_rows(runs, data["rows_hash"], args.threads),
        ],
    }
    harness.write_json(args.out / "train_speed.json", result)
    if result["contestants"]:
        train_report.draw(result, args.out / "train_speed.png")
        print(train_report.text_of(result))
    return harness.tell_failures(result["failures"])


if __name__ == "__main__":
    harness.run_main(main)
