"""What a GPU makes of training: this plugin, Hugging Face's Trainer and PEFT, one table.

    python benchmarks/gpu.py --out runs/benchmark

LoRA on roberta_small at batch 16 (as it is, compiled, and as CUDA graphs) and 256, full fine-tuning
and LoRA on roberta_base at batch 32, and 16 members of a sweep against one; meant to take five
minutes. The contestants are those of
train_speed.py (the real programs, bf16, batches by length). They take turns as forks of processes
that have done their imports, so that a turn costs seconds; a ratio is taken within a repeat, lowest
and highest stand in brackets. Without a GPU the program says so and ends; --device cpu --tiny
--steps 2 tries it, with figures that say nothing.

"% of products": of the tokens a second that the matrix products alone would allow, at the speed of
one large product in bf16 measured between the turns. "% of memory": the same for the bytes that
linear maps must read and write (their inputs, outputs and weights, forward and backward, and the
optimizer's tensors), at the speed of a large copy. Members are timed from the first command to the
last file, so what a process pays once is in both.

Files in the folder --out: gpu.json and gpu-logs/.
"""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import forks
import harness
import train_rows
import train_speed
from harness import HERE, Failed, InputError, range_of, ratios, spread
from train_report import floors

#: Sizes of an architecture; with --tiny all are ``TINY``.
ARCHS = {
    "small": {"layers": 4, "embed_dim": 512, "ffn_dim": 512, "heads": 8},
    "base": {"layers": 12, "embed_dim": 768, "ffn_dim": 3072, "heads": 12},
}
TINY = {"layers": 2, "embed_dim": 16, "ffn_dim": 24, "heads": 4}
TRAINED = (
    ("small", "lora", 16),
    ("small", "lora", 256),
    ("base", "full", 32),
    ("base", "lora", 32),
)
#: What layers run as, in one row each, beside the first of ``TRAINED``.
COMPILED = {"compiled": ("--compile", "on"), "graphs": ("--compile", "graphs")}
OURS = ("fairseq", "fairseq_cli.train", "fairseq_peft.plugin")
THEIRS = ("torch", "transformers", "peft")
VOCAB, POSITIONS, MEMBERS = 32_000, 256, 16


@dataclass(frozen=True)
class Contestant:
    """One line of the table; ``members`` is 0 where a training step is timed. ``rival``: whom it is
    compared with; ``flags``: more flags of fairseq-train."""

    name: str
    software: str
    arch: str
    method: str
    batch: int
    members: int = 0
    rival: str = ""
    flags: tuple = ()


def contestants(tiny: bool, device: str = "cuda") -> list[Contestant]:
    found = []
    for arch, method, batch in TRAINED:
        name = f"{arch}-{method}-{batch}"
        batch = min(batch, 4) if tiny else batch
        hf = f"hf-{name}"
        found.append(Contestant(f"ours-{name}", "ours", arch, method, batch, rival=hf))
        if len(found) == 1:
            found += [
                Contestant(f"ours-{name}-{way}", "ours", arch, method, batch, 0, hf, flags)
                for way, flags in COMPILED.items()
                if way != "graphs" or device == "cuda"
            ]
        found.append(Contestant(hf, "hf", arch, method, batch))
    most = 2 if tiny else MEMBERS
    return found + [
        Contestant(f"ours-members-{n}", "ours", "small", "lora", 4 if tiny else 16, n)
        for n in (1, most)
    ]


@dataclass(frozen=True)
class Goal:
    """``what`` is a median of ``figure`` (name -> summary of a contestant), to be ``limit`` or
    better; ``sign`` is +1 where more is better."""

    what: str
    name: str
    figure: str
    limit: float
    sign: int = 1


GOALS = (
    Goal("LoRA at batch 16, times Hugging Face", "ours-small-lora-16", "x_hf", 5),
    Goal("LoRA at batch 16, real tokens/s", "ours-small-lora-16", "tokens_per_s", 250_000),
    Goal("LoRA at batch 256, real tokens/s", "ours-small-lora-256", "tokens_per_s", 2_000_000),
    Goal("base, full, times Hugging Face", "ours-base-full-32", "x_hf", 1),
    Goal("base, full, memory to Hugging Face's", "ours-base-full-32", "memory_to_hf", 0.9, -1),
    Goal("base, LoRA, times Hugging Face", "ours-base-lora-32", "x_hf", 1),
    Goal("base, LoRA, memory to Hugging Face's", "ours-base-lora-32", "memory_to_hf", 0.9, -1),
    Goal("16 members, times the time of one", f"ours-members-{MEMBERS}", "x_one", 2, -1),
)


# The run


class Machine:
    """Data, and the processes that contestants are forks of."""

    def __init__(self, args, work: Path, hf: str | None):
        self.args, self.work = args, work
        self.logs = args.out / "gpu-logs"
        self.hf = forks.Server(hf, THEIRS, self.logs / "hf-imports") if hf else None
        self.data = {}  # batch -> what is to know of its rows

    def sizes(self, arch: str) -> dict:
        sizes = TINY if self.args.tiny else ARCHS[arch]
        vocab = 100 if self.args.tiny else VOCAB
        more = {"max_positions": POSITIONS, "vocab": vocab, "classes": 2}
        return {**sizes, **more, "dropout": train_speed.DROPOUT}

    def folder(self, batch: int) -> Path:
        """A work folder of train_speed.py with as many rows as the steps take."""
        folder = self.work / str(batch)
        if batch not in self.data:
            vocab = self.sizes("small")["vocab"]
            limit = POSITIONS - train_speed.PROMPT - 2
            rows, labels = train_rows.synthetic_rows(self.args.steps * batch, limit, vocab)
            self.data[batch] = train_rows.write_data(folder / "data", rows, labels, None, vocab)
        return folder

    def run(self, words: list, log: str) -> str:
        return forks.run(words, self.logs / log, self.args.threads)

    def check_device(self) -> None:
        """In a fork: who has asked a GPU cannot fork any more.

        Raises:
            InputError: there is none.
        """
        program = self.work / "seen.py"
        program.write_text("import torch; print(torch.cuda.is_available())")
        if self.args.device == "cuda" and self.run([program], "device") != "True":
            raise InputError(
                "torch sees no GPU here. Run this where there is one, with a torch for CUDA "
                "(fairseq-peft doctor tells), or try the program, with figures that say nothing: "
                "--device cpu --tiny --steps 2."
            )

    def products(self) -> dict:
        """GFLOP/s and GB/s of the machine."""
        size, copy, seconds = (64, 1, 0.01) if self.args.tiny else (8192, 1000, 0.5)
        words = [HERE / "products.py", "--device", self.args.device, "--shape", size, size, size]
        words += ["--copy-mb", copy, "--seconds", seconds]
        return json.loads(self.run(words, "products"))

    def measure(self, one: Contestant, repeat: int) -> dict:
        if one.members:
            return self.measure_members(one, repeat)
        folder, args = self.folder(one.batch), self.args
        asked = SimpleNamespace(
            device=args.device,
            warmup=args.warmup,
            steps=args.steps,
            parts="no",
            batch_size=one.batch,
        )
        contestant = train_speed.Contestant(
            one.name, one.software, one.method, "bf16", "by length", one.flags
        )
        words = train_speed.command(contestant, asked, self.sizes(one.arch), folder, repeat, "hf")
        words = [words[1], "--started", repr(time.time()), *words[2:]]
        log = f"{one.name}-{repeat}"
        try:
            if one.software == "hf":
                words[words.index("--base") + 1] = self.hf_base(one.arch)
                line = self.hf.run(words, self.logs / log, args.threads)
            else:
                line = self.run(from_scratch(words), log)
            return json.loads(line)
        finally:
            shutil.rmtree(folder / "run", ignore_errors=True)

    def hf_base(self, arch: str) -> str:
        """Hugging Face's model of these sizes, with random weights."""
        folder = self.work / f"hf-{arch}"
        if not folder.exists():
            words = [HERE / "train_hf.py", "--make-base", folder]
            words += ["--sizes", json.dumps(self.sizes(arch))]
            self.hf.run(words, self.logs / f"hf-base-{arch}", self.args.threads)
        return str(folder)

    def measure_members(self, one: Contestant, repeat: int) -> dict:
        folder, args, lines = self.folder(one.batch), self.args, []
        base = self.base(one.arch, folder)
        for seed in range(1, one.members + 1):
            words = [folder / "data", "--user-dir", harness.ROOT / "fairseq_peft"]
            words += ["--finetune-from-model", base]
            words += ["--arch", "roberta_small_lora", *harness.size_flags(self.sizes(one.arch))]
            words += ["--task", "sentence_classification", "--criterion", "sentence_classification"]
            words += ["--optimizer", "peft_adamw", "--lr", 1e-5, "--lr-scheduler", "fixed"]
            words += ["--clip-norm", 1, "--batch-size", one.batch, "--max-epoch", 1, "--seed", seed]
            words += ["--precision", "bf16", "--num-workers", 0, "--no-epoch-checkpoints"]
            words += ["--valid-subset", "valid", "--log-format", "simple"]
            words += ["--best-checkpoint-metric", "accuracy", "--maximize-best-checkpoint-metric"]
            words += ["--save-dir", folder / "members" / str(seed)]
            words += ["--cpu"] if args.device == "cpu" else []
            lines.append(shlex.join(map(str, words)))
        listed = folder / "members.txt"
        listed.write_text("\n".join(lines))
        start = time.perf_counter()
        try:
            words = ["-m", "fairseq_peft.cli", "sweep-members", listed]
            self.run(words, f"{one.name}-{repeat}")
            seconds = time.perf_counter() - start
            done = len(list((folder / "members").glob("*/adapter")))
            if done < one.members:
                raise Failed(f"left {done} adapters of {one.members} (log: {self.logs})")
            return {"seconds": seconds}
        finally:
            shutil.rmtree(folder / "members", ignore_errors=True)

    def base(self, arch: str, folder: Path) -> Path:
        """A checkpoint that members share: one update of stock fairseq's masked_lm."""
        if not (folder / "base").exists():
            words = train_speed.base_command(self.args, self.sizes(arch), folder)
            self.run(words[1:], "base")
        return folder / "base" / "checkpoint_last.pt"

    def close(self):
        if self.hf:
            self.hf.close()


def from_scratch(words: list) -> list:
    """The command of ours without a checkpoint to start from: random weights are as fast."""
    place = words.index("--finetune-from-model")
    return [*words[:place], "--from-scratch", *words[place + 2 :]]


def told(name: str, run: dict) -> str:
    if "real_tokens" in run:
        return train_speed.told(name, run)
    return f"{name:<20} {run['seconds']:8.1f} s"


# Summary


def bytes_per_step(sizes: dict, method: str, trainable: int, tokens: float) -> float:
    """What the linear maps of a step must read and write, in bf16: inputs and outputs (10 C + 2 F
    numbers a token and layer) and weights, once forward, once for the gradient of the input and,
    with full fine-tuning, once for the weight's; and of each trained parameter in fp32 gradient,
    two moments and itself, read and written."""
    c, f, layers = sizes["embed_dim"], sizes["ffn_dim"], sizes["layers"]
    passes = 3 if method == "full" else 2
    weights = layers * (4 * c * c + 2 * c * f)
    return passes * 2 * (tokens * layers * (10 * c + 2 * f) + weights) + 32 * trainable


def summarise(chosen, runs: dict, products: list, sizes, data: dict) -> dict:
    """Name -> figures; each is a spread over the repeats, or None.

    Args:
        sizes: name of an architecture -> sizes.
        data: batch -> what is to know of its rows.
    """
    found = {}
    for one in chosen:
        mine = runs.get(one.name)
        if not mine:
            continue
        if one.members:
            seconds = {k: run["seconds"] for k, run in mine.items()}
            first = {k: run["seconds"] for k, run in runs.get("ours-members-1", {}).items()}
            found[one.name] = {"seconds": spread(list(seconds.values()))}
            found[one.name]["x_one"] = ratios(seconds, first) if one.members > 1 else None
            continue
        rival = runs.get(one.rival, {})
        speeds, peaks = train_speed.speeds(mine), memory(mine)
        flop = {
            entry["method"]: entry["flop_per_token"]
            for entry in floors(sizes(one.arch), data[one.batch]["mean_length"])
            if entry["scope"] == "every layer"
        }[one.method]
        needed = {
            k: bytes_per_step(
                sizes(one.arch), one.method, run["trainable_parameters"],
                run["real_tokens"] / run["steps"],
            ) * run["steps"] / run["seconds"]
            for k, run in mine.items()
        }  # fmt: skip
        found[one.name] = {
            "tokens_per_s": spread(list(speeds.values())),
            "step_ms": spread([1000 * run["seconds"] / run["steps"] for run in mine.values()]),
            "x_hf": ratios(speeds, train_speed.speeds(rival)),
            "peak_bytes": spread(list(peaks.values())),
            "memory_to_hf": ratios(peaks, memory(rival)),
            "of_products": spread(
                [speeds[k] * flop / 1e9 / products[k - 1]["bf16"] for k in speeds]
            ),
            "of_memory": spread([needed[k] / 1e9 / products[k - 1]["copy"] for k in needed]),
            "trainable_parameters": next(iter(mine.values()))["trainable_parameters"],
            "startup_s": spread([run["startup_s"] for run in mine.values()]),
        }
    return found


def memory(runs: dict) -> dict:
    """Repeat -> peak bytes on the device; nothing on a CPU, whose processes share their imports."""
    peaks = {k: run["peak_device_bytes"] for k, run in runs.items()}
    return {k: peak for k, peak in peaks.items() if peak is not None}


def text_of(result: dict) -> str:
    """What is printed."""
    header = ["contestant", "real tokens/s", "ms a step", "x HF", "% of products", "% of memory"]
    header += ["peak MB", "memory to HF", "start-up s"]
    lines = [
        [
            name,
            range_of(entry["tokens_per_s"]),
            range_of(entry["step_ms"], 1),
            range_of(entry["x_hf"], 2),
            range_of(entry["of_products"], 1, 100, bare=True),
            range_of(entry["of_memory"], 1, 100, bare=True),
            range_of(entry["peak_bytes"], 0, 1e-6, bare=True),
            range_of(entry["memory_to_hf"], 2, bare=True),
            range_of(entry["startup_s"], 1, bare=True),
        ]
        for name, entry in result["contestants"].items()
        if "tokens_per_s" in entry
    ]
    members = [
        f"{name}: {range_of(entry['seconds'], 1)} s from the first command to the last file"
        + (f", {range_of(entry['x_one'], 2)} times one." if entry["x_one"] else ".")
        for name, entry in result["contestants"].items()
        if "seconds" in entry
    ]
    settings, machine = result["settings"], result["machine"]
    each = [f"{key} {range_of(spread([p[key] for p in result['products']]))}"
            for key in ("fp32", "bf16", "copy")]  # fmt: skip
    goals = [
        [goal["what"], goal["wanted"], goal["found"], goal["reached"]] for goal in result["goals"]
    ]
    blocks = [
        f"{machine['device']}; {machine['processor']}; load before the start "
        f"{machine['load_before']:.1f}. {settings['repeats']} repeats of {settings['steps']} steps "
        f"after {settings['warmup']}, bf16, batches by length. {result['seconds']:.0f} s in all.",
        harness.table(header, lines),
        "\n".join(members),
        f"Here a product in GFLOP/s, a copy in GB/s: {', '.join(each)}.",
        harness.table(["goal", "wanted", "found", "reached"], goals),
        *(f"Left out: {line}" for line in result["left_out"]),
    ]
    if settings["tiny"]:
        blocks.append("Tiny models: these figures say nothing.")
    return "\n\n".join(block for block in blocks if block)


def judged(goals, found: dict) -> list[dict]:
    """The goals with what was found; ``-`` where nothing was measured."""
    lines = []
    for goal in goals:
        value = found.get(goal.name, {}).get(goal.figure)
        digits = 0 if goal.limit > 100 else 2
        better = value and goal.sign * (value["median"] - goal.limit) >= 0
        lines.append(
            {
                "what": goal.what,
                "wanted": f"{'at least' if goal.sign > 0 else 'at most'} {goal.limit:,}",
                "found": range_of(value, digits),
                "reached": "-" if value is None else "yes" if better else "no",
            }
        )
    return lines


# The program


def read_args(argv=None):
    flags = harness.parser(__doc__, "*-lora-16", repeats=2, sizes=False)
    flags.set_defaults(threads=min(8, os.cpu_count()))
    add = flags.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only tries the program")
    add("--tiny", action="store_true", help="models of 2 layers, to try the program")
    add("--steps", type=int, default=60, help="steps on the clock (60)")
    add("--warmup", type=int, default=30, help="steps before them, in which shapes are new (30)")
    args = flags.parse_args(argv)
    harness.check_positive(args, "repeats", "steps", "warmup", "threads")
    return args


def main(argv=None) -> int:
    args, start = read_args(argv), time.perf_counter()
    chosen = harness.choose(contestants(args.tiny, args.device), args.only)
    if args.list:
        print("\n".join(one.name for one in chosen))
        return 0
    chosen, hf, left_out = harness.leave_out_hf(chosen)
    load, products = os.getloadavg()[0], []
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        machine = Machine(args, Path(folder), hf)  # Hugging Face's imports begin
        try:
            for module in OURS:
                importlib.import_module(module)
            machine.check_device()
            runs, failures = harness.take_turns(
                chosen,
                args.repeats,
                machine.measure,
                lambda repeat: products.append(machine.products()),
                told,
            )
        except Failed as error:
            raise InputError(f"The machine could not be measured: it {error}.") from None
        finally:
            machine.close()
    found = summarise(chosen, runs, products, machine.sizes, machine.data)
    names = ("repeats", "steps", "warmup", "threads", "device", "tiny")
    result = {
        **harness.about(args, names, {name: machine.sizes(name) for name in ARCHS}, load),
        "data": machine.data,
        "products": products,
        "contestants": found,
        "runs": {name: harness.listed(mine) for name, mine in runs.items()},
        "goals": judged(GOALS, found),
        "left_out": left_out,
        "failures": list(failures.values()),
        "seconds": time.perf_counter() - start,
    }
    result["machine"]["device"] = products[0].get("device", args.device)
    harness.write_json(args.out / "gpu.json", result)
    print(text_of(result))
    return harness.tell_failures(result["failures"])


if __name__ == "__main__":
    harness.run_main(main)
