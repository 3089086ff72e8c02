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

import argparse
import fnmatch
import json
import os
import platform
import re
import shlex
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

from fairseq_peft.errors import InputError, install_excepthook  # noqa: E402
from fairseq_peft.files import whole  # noqa: E402
from fairseq_peft.text.binarised import MAGIC, PAD, read_tokens  # noqa: E402

BOS, EOS = 0, 2
RANK, BOTTLENECK, PROMPT = 8, 64, 20
DROPOUT = 0.1
PRODUCT = (2048, 512, 512)  # (m, k) x (k, n), the product whose speed the floor takes
PARTS = ("forward", "backward", "optimizer", "data", "other")
METHODS = ("full", "head_only", "lora", "adapter", "prompt")

#: Lengths of the synthetic rows: the reviews of cls-books have a median of 103 and a mean of 140.
LENGTHS = {"median": 103, "sigma": 0.8, "shortest": 8}

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


def choose(found: list[Contestant], only: str) -> list[Contestant]:
    """Those whose name fits one of the patterns (with commas between); all without patterns."""
    patterns = [pattern for pattern in only.split(",") if pattern]
    for pattern in patterns:
        if not any(fnmatch.fnmatch(one.name, pattern) for one in found):
            names = ", ".join(one.name for one in found)
            raise InputError(f"--only {pattern!r} fits no contestant. There are: {names}.")
    return [
        one
        for one in found
        if not patterns or any(fnmatch.fnmatch(one.name, pattern) for pattern in patterns)
    ]


def find_hf_python() -> tuple[str | None, str]:
    """The Python with transformers and PEFT, and why there is none."""
    path = os.environ.get("FAIRSEQ_PEFT_PEFT_PYTHON") or str(ROOT / ".venv-peft/bin/python")
    if not os.access(path, os.X_OK):
        return None, f"{path} does not exist"
    probe = "import accelerate, importlib.util as u; assert u.find_spec('transformers')"
    probe += " and u.find_spec('peft')"
    if subprocess.run([path, "-c", probe], capture_output=True).returncode:
        return None, f"{path} lacks transformers, peft or accelerate"
    return path, ""


# Data


def synthetic_rows(count: int, limit: int, vocab: int, seed: int = 0):
    """Rows of random words whose lengths are like those of reviews, and labels 0 and 1."""
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(np.log(LENGTHS["median"]), LENGTHS["sigma"], count).astype(int)
    lengths = np.clip(lengths, min(LENGTHS["shortest"], limit), limit)
    rows = [rng.integers(4, vocab - 1, length).tolist() for length in lengths]
    return rows, [row % 2 for row in range(count)]


def real_rows(data: Path, count: int, limit: int, seed: int = 0):
    """``count`` training rows of a folder of prepare_data.sh, drawn at random, and labels."""
    tokens, offsets = read_tokens(data / "input0" / "train")
    labels, ends = read_tokens(data / "label" / "train")
    if len(offsets) - 1 < count:
        raise InputError(
            f"{data} has {len(offsets) - 1} training rows, --steps x --batch-size are {count}: "
            "give fewer steps."
        )
    drawn = np.random.default_rng(seed).permutation(len(offsets) - 1)[:count]
    rows = [tokens[offsets[i] : offsets[i + 1] - 1][:limit].tolist() for i in drawn]
    return rows, [int(labels[ends[i]]) - 4 for i in drawn]


def write_indexed(prefix: Path, rows) -> None:
    """Rows in fairseq's ``mmap`` format: ``prefix.bin`` and ``prefix.idx``."""
    sizes = np.array([len(row) for row in rows], dtype="<i4")
    flat = np.concatenate([np.asarray(row, dtype="<i4") for row in rows])
    flat.tofile(f"{prefix}.bin")
    starts = 4 * (np.cumsum(sizes, dtype="<i8") - sizes)
    header = MAGIC + struct.pack("<QBQ", 1, 4, len(sizes))
    Path(f"{prefix}.idx").write_bytes(header + sizes.tobytes() + starts.tobytes())


def write_data(folder: Path, rows, labels, source: Path | None, vocab: int, valid: int = 8) -> dict:
    """Write ``rows`` once for all contestants: a binarised folder, and rows.npz for Hugging Face.

    Returns:
        What is to know of them; ``rows_hash`` is that of the rows as models see them.
    """
    from meter import rows_hash

    for part in ("input0", "label"):
        (folder / part).mkdir(parents=True)
        if source is not None:
            shutil.copy(source / part / "dict.txt", folder / part)
    if source is None:
        words = "".join(f"w{i} {vocab - i}\n" for i in range(vocab - 5))
        (folder / "input0" / "dict.txt").write_text(words)
        (folder / "label" / "dict.txt").write_text("0 1\n1 1\n")
    for split, end in (("train", len(rows)), ("valid", valid)):
        write_indexed(folder / "input0" / split, [[*row, EOS] for row in rows[:end]])
        write_indexed(folder / "label" / split, [[4 + label, EOS] for label in labels[:end]])
    seen = [[BOS, *row, EOS] for row in rows]
    lengths = [len(row) for row in seen]
    np.savez(
        folder / "rows.npz",
        tokens=np.concatenate([np.array(row, dtype=np.int32) for row in seen]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=np.array(labels),
    )
    return {
        "source": source.name if source else "synthetic",
        "rows": len(rows),
        "mean_length": statistics.fmean(lengths),
        "longest": max(lengths),
        "rows_hash": rows_hash(seen),
    }


def count_lines(path: Path, skip: str = "\0") -> int:
    return sum(not line.startswith(skip) for line in path.read_text("utf-8").splitlines())


# Commands


def size_flags(sizes: dict) -> list[str]:
    return [
        *("--encoder-layers", str(sizes["layers"])),
        *("--encoder-embed-dim", str(sizes["embed_dim"])),
        *("--encoder-ffn-embed-dim", str(sizes["ffn_dim"])),
        *("--encoder-attention-heads", str(sizes["heads"])),
        *("--max-positions", str(sizes["max_positions"])),
        *("--dropout", str(sizes["dropout"]), "--attention-dropout", str(sizes["dropout"])),
        *("--activation-dropout", "0", "--pooler-dropout", "0"),
    ]


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
            *("--init-token", str(BOS), "--optimizer", "adam", "--adam-betas", "(0.9, 0.999)"),
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


class Failed(Exception):
    """A process failed; the text is a sentence."""


def start(words: list[str], log: Path, threads: int, timed: bool = False) -> str:
    """Run a process to its end; its output goes to ``log``.

    Args:
        timed: tell it when it was started (behind the name of its script).

    Returns:
        The last line of its stdout.
    """
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    env["HF_HUB_OFFLINE"] = "1"
    log.parent.mkdir(parents=True, exist_ok=True)
    if timed:
        words = [*words[:2], "--started", repr(time.time()), *words[2:]]
    done = subprocess.run(
        words, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    log.write_text(f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}", encoding="utf-8")
    if done.returncode:
        reason = reason_of(done.stderr)
        raise Failed(f"failed with status {done.returncode}: {reason} (log: {log})")
    return (done.stdout.strip().splitlines() or [""])[-1]


def reason_of(stderr: str) -> str:
    """The line that says what went wrong: the last that names an error, else the last."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["no message"]
    return ([line for line in lines if re.search(r"[Ee]rror: ", line)] or lines)[-1]


# The floor


def floors(sizes: dict, mean_length: float) -> list[dict]:
    """The multiplications of a method, as FLOP a real token, with the formula.

    W are the weights of the layers' linear maps; a product costs 2 FLOP a weight forward, as much
    again for the gradient of its input, and of its weight. Attention's own products, element-wise
    work, head and optimizer are left out. Backward goes through the whole first layer. ``every
    layer`` computes each layer at every token; ``head's share`` the last one only where the head
    reads it (keys and values at every token, the rest, which is not counted, at <s>).
    """
    c, f, layers = sizes["embed_dim"], sizes["ffn_dim"], sizes["layers"]
    longer = f"({mean_length:.0f} + {PROMPT}) / {mean_length:.0f}"
    found = []
    for scope in ("every layer", "head's share"):
        all_of_it = scope == "every layer"
        whole_layers = layers if all_of_it else layers - 1
        weights = f"{whole_layers} x (4 x {c}^2 + 2 x {c} x {f})"
        weights += "" if all_of_it else f" + 2 x {c}^2"
        maps = 2 * layers - (not all_of_it)  # LoRA on q and v
        blocks = 2 * whole_layers
        w = whole_layers * (4 * c * c + 2 * c * f) + (0 if all_of_it else 2 * c * c)
        entries = {
            "full": ("6 W", 6 * w),
            "head_only": ("2 W", 2 * w),
            "lora": (f"4 W + 6 x {maps} x 2 x {c} x {RANK}", 4 * w + 12 * maps * c * RANK),
            "adapter": (
                f"4 W + 6 x {blocks} x 2 x {c} x {BOTTLENECK}",
                4 * w + 12 * blocks * c * BOTTLENECK,
            ),
            "prompt": (f"4 W x {longer}", 4 * w * (mean_length + PROMPT) / mean_length),
        }
        for method, (formula, flop) in entries.items():
            found.append(
                {
                    "method": method,
                    "scope": scope,
                    "formula": f"{formula}, W = {weights}",
                    "flop_per_token": flop,
                }
            )
    return found


# Summary


def spread(values: list[float]) -> dict | None:
    """Median, lowest and highest; None of nothing."""
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def speed(run: dict) -> float:
    return run["real_tokens"] / run["seconds"]


def ratios(runs: dict, others: dict) -> dict | None:
    """Spread of real tokens/s over those of ``others``, repeat by repeat."""
    return spread([speed(runs[k]) / speed(others[k]) for k in sorted(runs) if k in others])


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
            "ratio_to_reference": ratios(mine, runs.get(reference, {})),
            "rival": rival if rival in runs else None,
            "ratio_to_rival": ratios(mine, runs.get(rival, {})),
            "share_of_floor": spread(peak),
            "runs": [{"repeat": repeat, **mine[repeat]} for repeat in sorted(mine)],
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


# Output


def range_of(values: dict | None, digits: int = 0, scale: float = 1, bare: bool = False) -> str:
    """``median (min-max)``, the range only where there is one."""
    if values is None:
        return "-"
    middle, low, high = (f"{scale * values[key]:,.{digits}f}" for key in ("median", "min", "max"))
    return middle if bare or low == high else f"{middle} ({low}-{high})"


def table(header: list[str], lines: list[list[str]], words: int = 1) -> str:
    """A Markdown table, aligned to be read as it is: the first ``words`` columns left."""
    columns = range(len(header))
    widths = [max(len(line[i]) for line in [header, *lines]) for i in columns]

    def draw(line):
        cells = [
            line[i].ljust(widths[i]) if i < words else line[i].rjust(widths[i]) for i in columns
        ]
        return f"| {' | '.join(cells)} |"

    rule = "|".join("-" * (widths[i] + 1) + ("-" if i < words else ":") for i in columns)
    return "\n".join([draw(header), f"|{rule}|", *map(draw, lines)])


def speed_table(result: dict) -> str:
    header = ["contestant", "batches", "real tokens/s", "padded/s", "x first", "x HF", "% of floor"]
    lines = [
        [
            entry["name"],
            entry["batches"],
            range_of(entry["real_tokens_per_s"]),
            range_of(entry["padded_tokens_per_s"], bare=True),
            range_of(entry["ratio_to_reference"], 2),
            range_of(entry["ratio_to_rival"], 2),
            range_of(entry["share_of_floor"], 1, 100, bare=True),
        ]
        for entry in result["contestants"]
    ]
    return table(header, lines, words=2)


def step_table(result: dict) -> str:
    header = ["contestant", "ms a step", *PARTS, "start-up s", "peak MB", "trainable"]
    lines = [
        [
            entry["name"],
            range_of(entry["step_ms"]),
            *(
                range_of(entry["parts_ms"] and entry["parts_ms"][part], 1, bare=True)
                for part in PARTS
            ),
            range_of(entry["startup_s"], 1, bare=True),
            range_of(entry["peak_device_bytes"] or entry["peak_rss_bytes"], 0, 1e-6, bare=True),
            f"{entry['trainable_parameters']:,}",
        ]
        for entry in result["contestants"]
    ]
    return table(header, lines)


def floor_table(result: dict) -> str:
    header = ["floor", "scope", "formula", "MFLOP a token", "fp32 tokens/s", "bf16 tokens/s"]
    products = result["products"]
    speeds = [statistics.median(p[key] for p in products) for key in ("fp32", "bf16")]
    lines = [
        [
            entry["method"],
            entry["scope"],
            entry["formula"],
            f"{entry['flop_per_token'] / 1e6:,.2f}",
            *(f"{1e9 * gflops / entry['flop_per_token']:,.0f}" for gflops in speeds),
        ]
        for entry in result["floors"]
    ]
    return table(header, lines, words=3)


def text_of(result: dict) -> str:
    """What is printed."""
    settings, data = result["settings"], result["data"]
    m, k, n = PRODUCT
    gflops = ", ".join(
        f"{key} {range_of(spread([p[key] for p in result['products']]))}"
        for key in ("fp32", "bf16")
    )
    blocks = [
        f"Repeats: {settings['repeats']}, steps: {settings['steps']} after {settings['warmup']}, "
        f"rows a step: {settings['batch_size']}, threads: {settings['threads']}, "
        f"device: {settings['device']}. "
        f"{data['rows']} {data['source']} rows of {data['mean_length']:.0f} tokens in the mean, "
        f"{data['longest']} at most. {result['machine']['processor']}; load before the start "
        f"{result['machine']['load_before']:.1f}.\n"
        "Median (lowest-highest) over the repeats. Ratios are of real tokens/s within one repeat: "
        f"x first to {result['reference']}, x HF to hf-full-bf16 (full) or hf-lora-bf16 (others).",
        speed_table(result),
        step_table(result),
        "data: between two steps. other: what is left of a step. Peak MB: resident memory, or the "
        "device's on a GPU.",
        f"A {m} x {k} x {n} product here, GFLOP/s: {gflops}.",
        floor_table(result),
    ]
    if settings["device"] == "cuda":
        blocks.append("On a GPU this benchmark is untested.")
    blocks += [f"Left out: {line}" for line in result["left_out"]]
    return "\n\n".join(blocks)


def draw(result: dict, path: Path) -> None:
    """Real tokens/s beside the split of a step, one bar a contestant."""
    import matplotlib
    from matplotlib.figure import Figure

    from fairseq_peft.report.drawing import BLUE, GREEN, ORANGE, PURPLE, SETTINGS, SKY

    entries = result["contestants"][::-1]
    colours = {"stock": ORANGE, "ours": BLUE, "hf": GREEN}
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(11, 1.6 + 0.36 * len(entries)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        names = [f"{entry['name']} ({entry['batches']})" for entry in entries]
        speeds = [entry["real_tokens_per_s"] for entry in entries]
        middles = [values["median"] for values in speeds]
        errors = [[abs(v[key] - v["median"]) for v in speeds] for key in ("min", "max")]
        left.barh(
            names,
            middles,
            xerr=errors,
            color=[colours[entry["software"]] for entry in entries],
            ecolor="#444444",
        )
        left.set_xlabel("real tokens/s (bar: median, line: lowest to highest)")
        if all(entry["parts_ms"] for entry in entries):
            ends = [0.0] * len(entries)
            for part, colour in zip(PARTS, (BLUE, SKY, ORANGE, GREEN, PURPLE)):
                widths = [entry["parts_ms"][part]["median"] for entry in entries]
                right.barh(names, widths, left=ends, color=colour, label=part)
                ends = [end + width for end, width in zip(ends, widths)]
            right.legend(loc="best")
        else:
            right.barh(names, [entry["step_ms"]["median"] for entry in entries], color=SKY)
        right.set_xlabel("ms a step")
        figure.suptitle(
            f"Training, batch {result['settings']['batch_size']}, "
            f"threads {result['settings']['threads']}, {result['settings']['device']}"
        )
        figure.savefig(path)


# The run


def read_args(argv=None):
    text = __doc__.split("\n\n")
    parser = argparse.ArgumentParser(
        description=text[0],
        epilog="\n\n".join(text[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--out", type=Path, default=ROOT / "runs" / "benchmark", help="folder for the results")
    add("--repeats", type=int, default=3, help="times that every contestant runs (3)")
    add("--steps", type=int, default=40, help="steps on the clock (40)")
    add("--warmup", type=int, default=5, help="steps before them (5)")
    add("--batch-size", type=int, default=8, help="rows a step (8)")
    add("--threads", type=int, default=os.cpu_count(), help="threads of each process (all)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="cuda is untested (cpu)")
    add("--data", type=Path, help="a folder of prepare_data.sh, instead of synthetic rows")
    add("--only", default="", help="names or patterns with commas between, e.g. 'stock-*,*-lora-*'")
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
    add("--layers", type=int, default=4)
    add("--embed-dim", type=int, default=512)
    add("--ffn-dim", type=int, default=512)
    add("--heads", type=int, default=8)
    add("--max-positions", type=int, default=256)
    add("--vocab", type=int, default=32_000, help="with special tokens; synthetic rows only")
    add("--list", action="store_true", help="name the contestants and end")
    args = parser.parse_args(argv)
    for name in ("repeats", "steps", "warmup", "batch_size", "threads"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: give 1 or more.")
    if args.max_positions < PROMPT + 10:
        raise InputError(f"--max-positions {args.max_positions}: give {PROMPT + 10} or more.")
    args.parts = args.parts or ("yes" if args.device == "cpu" else "no")
    return args


def prepare(args, chosen, work: Path, logs: Path, hf: str | None):
    """Data and bases: (sizes of the model, what is to know of the data)."""
    count, limit = args.steps * args.batch_size, args.max_positions - PROMPT - 2
    if args.data:
        rows, labels = real_rows(args.data, count, limit)
    else:
        rows, labels = synthetic_rows(count, limit, args.vocab)
    data = write_data(work / "data", rows, labels, args.data, args.vocab)
    sizes = {
        "layers": args.layers,
        "embed_dim": args.embed_dim,
        "ffn_dim": args.ffn_dim,
        "heads": args.heads,
        "max_positions": args.max_positions,
        "vocab": 5 + count_lines(work / "data" / "input0" / "dict.txt"),
        "classes": count_lines(work / "data" / "label" / "dict.txt", "madeupword"),
        "dropout": DROPOUT,
    }
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
    chosen = choose(every, args.only)
    if args.list:
        print("\n".join(one.name for one in chosen))
        return 0
    left_out = []
    hf, reason = find_hf_python()
    if hf is None and any(one.software == "hf" for one in chosen):
        names = ", ".join(one.name for one in chosen if one.software == "hf")
        left_out.append(f"{names}: {reason}. bash scripts/test.sh parity makes it.")
        chosen = [one for one in chosen if one.software != "hf"]
        if not chosen:
            raise InputError(f"Nothing is left to measure. {left_out[0]}")

    logs = args.out / "logs"
    failures, runs, products = [], {}, []
    load = os.getloadavg()[0]
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="train-speed-") as folder:
        work = Path(folder)
        try:
            sizes, data = prepare(args, chosen, work, logs, hf)
        except Failed as error:
            raise InputError(f"The checkpoint to start from could not be made: {error}") from None
        shape = [*map(str, PRODUCT), "--device", args.device]
        for repeat in range(1, args.repeats + 1):
            words = [sys.executable, str(HERE / "products.py"), "--shape", *shape]
            products.append(json.loads(start(words, logs / "products.log", args.threads)))
            for one in chosen:
                if any(name == one.name for name, _ in failures):
                    continue
                words = command(one, args, sizes, work, repeat, hf)
                log = logs / f"{one.name}-{repeat}.log"
                try:
                    line = start(words, log, args.threads, timed=True)
                    runs.setdefault(one.name, {})[repeat] = run = json.loads(line)
                except (Failed, ValueError) as error:
                    failures.append((one.name, f"{one.name} {error}"))
                    print(f"train_speed.py: {failures[-1][1]}", file=sys.stderr, flush=True)
                    continue
                finally:
                    shutil.rmtree(work / "run", ignore_errors=True)
                print(
                    f"repeat {repeat}: {one.name:<20} {speed(run):8,.0f} real tokens/s",
                    file=sys.stderr,
                    flush=True,
                )
    failures = [text for _, text in failures] + check_rows(runs, data["rows_hash"], args.threads)

    floor = floors(sizes, data["mean_length"])
    result = {
        "schema": 1,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "settings": {
            **{key: getattr(args, key) for key in ("repeats", "steps", "warmup", "batch_size")},
            **{key: getattr(args, key) for key in ("threads", "device")},
            "model": sizes,
        },
        "machine": {
            "platform": platform.platform(),
            "processor": processor(),
            "python": platform.python_version(),
            "load_before": load,
        },
        "data": data,
        "reference": chosen[0].name,
        "products": products,
        "floors": floor,
        "contestants": summarise(chosen, runs, products, floor),
        "left_out": left_out,
        "failures": failures,
    }
    with whole(args.out / "train_speed.json") as path:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if result["contestants"]:
        draw(result, args.out / "train_speed.png")
        print(text_of(result))
    for failure in failures:
        print(f"train_speed.py: error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def processor() -> str:
    """The CPU's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    install_excepthook("train_speed.py")
    sys.exit(main())
