"""How fast do models that write train, beside Hugging Face's Trainer and PEFT?

    python benchmarks/text_speed.py --out runs/benchmark

LoRA of rank 8 where PEFT puts it, on T5-small and GPT-2 with random weights, and on small models of
the same families: the real ``fairseq-train`` with this plugin, and ``Trainer`` with PEFT, each a
process of its own, on the same folder, rows and words, batches by length, in fp32 or with
--precision bf16. They take turns; a ratio is taken within one repeat. Tokens are those of the
prompts (of GPT-2 with their answers), without padding; a CPU second is one of the process, all
threads together, which other programs lengthen less than one of the clock. Memory is the process's
peak, imports and all.
``packed`` is ``ours`` with ``--pack``: batches of any lengths, without padding.

Files in the folder ``--out``: text_speed.json and logs/.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import harness
from harness import HERE, ROOT, Failed, InputError, range_of, ratios, spread, table

from fairseq_peft.architectures.hf_configs import CONFIGS

NUM_ROWS, NUM_WORDS = 160, 2000
#: Words of a prompt and of an answer: as reviews with a label, and as short news with a summary.
LENGTHS = {"text_to_text": ((40, 200), (1, 1)), "causal_lm": ((40, 160), (10, 40))}
COLUMNS = {"text_to_text": ("input", "target"), "causal_lm": ("prompt", "answer")}
ARCHS = {"text_to_text": "hf_seq2seq", "causal_lm": "hf_causal_lm"}
SMALL = {
    "t5-small": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4, "num_layers": 2,
                 "num_decoder_layers": 2, "vocab_size": 2048},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 2048, "bos_token_id": 0,
             "eos_token_id": 0},
}  # fmt: skip
TASKS = {"t5-small": "text_to_text", "gpt2": "causal_lm"}


@dataclass(frozen=True)
class Contestant:
    """One line of the table."""

    name: str
    software: str
    config: str
    small: bool

    @property
    def task(self) -> str:
        return TASKS[self.config]

    @property
    def model(self) -> str:
        return f"{self.config}-made-small" if self.small else self.config


def contestants() -> list[Contestant]:
    """All of them; those of one model follow each other."""
    return [
        Contestant(f"{software}-{config}{'-made-small' * small}", software, config, small)
        for small in (True, False)
        for config in TASKS
        for software in ("ours", *(["packed"] if TASKS[config] == "causal_lm" else []), "hf")
    ]


def prepare(one: Contestant, work: Path, hf: str, logs: Path, threads: int) -> None:
    """The model's folder and the rows, once for both."""
    base, data = work / one.model, work / f"{one.model}-data"
    if base.exists():
        return
    config = {**CONFIGS[one.config], **(SMALL[one.config] if one.small else {})}
    words = [hf, str(HERE / "train_text_hf.py"), "--make-base", str(base), "--task", one.task]
    log = logs / f"make-{one.model}.log"
    harness.start([*words, "--config", json.dumps(config)], log, threads)
    names = [f"w{i}" for i in range(NUM_WORDS)]
    write_tokenizer(base / "tokenizer.json", names)
    data.mkdir()
    draw = random.Random(1)
    for split, number in (("train", NUM_ROWS), ("valid", 4)):
        rows = []
        for _ in range(number):
            texts = [" ".join(draw.choices(names, k=draw.randint(*k))) for k in LENGTHS[one.task]]
            rows.append(json.dumps(dict(zip(COLUMNS[one.task], texts))))
        (data / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_tokenizer(path: Path, names: list[str]) -> None:
    """Words by their number, behind three ids that mean something to some model."""
    import tokenizers

    known = {word: i for i, word in enumerate(["<a>", "<b>", "<unk>", *names])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))


def command(one: Contestant, args, work: Path, hf: str) -> list[str]:
    """The words of a contestant's process."""
    base, data = str(work / one.model), str(work / f"{one.model}-data")
    meter = ["--warmup", str(args.warmup), "--steps", str(args.steps), "--device", "cpu"]
    if one.software == "hf":
        return [
            *(hf, str(HERE / "train_text_hf.py"), *meter, "--pad", "0", "--task", one.task),
            *("--base", base, "--data", data, "--output", str(work / "output")),
            *("--batch-size", str(args.batch_size), "--precision", args.precision),
        ]
    config = json.loads((work / one.model / "config.json").read_text())
    return [
        *(sys.executable, str(HERE / "train_fairseq.py"), *meter),
        *("--pad", str(config["vocab_size"]), "--", data),
        *("--user-dir", str(ROOT / "fairseq_peft"), "--task", one.task, "--criterion", "answers"),
        *("--arch", ARCHS[one.task], "--hf-model", base, "--peft", "lora", "--lora-rank", "8"),
        *("--lora-alpha", "16", "--precision", args.precision, "--optimizer", "peft_adamw"),
        *("--lr", "1e-5", "--clip-norm", "1", "--batch-size", str(args.batch_size), "--cpu"),
        *("--max-update", str(args.warmup + args.steps), "--disable-validation", "--no-save"),
        *("--num-workers", "0", "--save-dir", str(work / "output"), "--seed", "1"),
        *(["--pack"] if one.software == "packed" else []),
    ]


def summarise(chosen, runs: dict) -> list[dict]:
    """One entry a contestant; ``runs``: name -> repeat -> what its process reported."""

    def speeds(name, key):
        return {k: run["real_tokens"] / run[key] for k, run in runs.get(name, {}).items()}

    found = []
    for one in chosen:
        mine, theirs = runs.get(one.name, {}), f"hf-{one.model}"
        padded = f"ours-{one.model}"
        if not mine:
            continue
        memory = {k: run["peak_rss_bytes"] for k, run in mine.items()}
        others = {k: run["peak_rss_bytes"] for k, run in runs.get(theirs, {}).items()}
        entry = {"name": one.name, "trainable": mine[1]["trainable_parameters"]}
        entry["versions"] = mine[1]["versions"]
        for key, what in (("seconds", "clock"), ("cpu_seconds", "cpu")):
            entry[f"tokens_per_{what}_s"] = spread(list(speeds(one.name, key).values()))
            entry[f"{what}_ratio_to_hf"] = ratios(speeds(one.name, key), speeds(theirs, key))
            entry[f"{what}_ratio_to_ours"] = ratios(speeds(one.name, key), speeds(padded, key))
        entry["peak_rss_bytes"] = spread(list(memory.values()))
        entry["memory_to_hf"] = ratios(memory, others)
        found.append({**entry, "runs": harness.listed(mine)})
    return found


def text_of(result: dict) -> str:
    """What is printed."""
    settings = result["settings"]
    header = ["contestant", "tokens a CPU s", "x HF", "x ours", "tokens a s", "x HF", "peak MB"]
    lines = [
        [
            entry["name"],
            range_of(entry["tokens_per_cpu_s"]),
            range_of(entry["cpu_ratio_to_hf"], 2),
            range_of(entry["cpu_ratio_to_ours"], 2),
            range_of(entry["tokens_per_clock_s"]),
            range_of(entry["clock_ratio_to_hf"], 2),
            range_of(entry["peak_rss_bytes"], 0, 1e-6),
            range_of(entry["memory_to_hf"], 2),
            f"{entry['trainable']:,}",
        ]
        for entry in result["contestants"]
    ]
    return "\n\n".join(
        [
            f"LoRA, {settings['precision']}, batches of {settings['batch_size']}, "
            f"{settings['steps']} steps, repeats: {settings['repeats']}, "
            f"threads: {settings['threads']}. "
            f"{harness.machine_sentence(result)}\nMedian (lowest-highest) over the repeats.",
            table([*header, "of HF", "trainable"], lines),
            *(f"Left out: {line}" for line in result["left_out"]),
        ]
    )


def read_args(argv=None):
    flags = harness.parser(__doc__, "*-gpt2", sizes=False)
    add = flags.add_argument
    add("--steps", type=int, default=20, help="steps on the clock (20)")
    add("--warmup", type=int, default=3, help="steps before it (3)")
    add("--batch-size", type=int, default=8, help="rows a step (8)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of all (fp32)")
    args = flags.parse_args(argv)
    harness.check_positive(args, "repeats", "threads", "steps", "warmup", "batch_size")
    return args


def main(argv=None) -> int:
    args = read_args(argv)
    chosen = harness.choose(contestants(), args.only)
    if args.list:
        print("\n".join(one.name for one in chosen))
        return 0
    chosen, hf, left_out = harness.leave_out_hf(chosen)
    hf = hf or harness.find_hf_python()[0]
    if hf is None:
        raise InputError(
            "The models are made by Hugging Face's library, for which there is no environment: "
            "bash scripts/test.sh parity makes it."
        )
    args.out = args.out.resolve()
    logs, load = args.out / "logs", os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="text-speed-") as folder:
        work = Path(folder)

        def measure(one, repeat):
            try:
                prepare(one, work, hf, logs, args.threads)
            except Failed as error:
                raise InputError(f"A model to train could not be made: {error}") from None
            log = logs / f"text-{one.name}-{repeat}.log"
            return harness.measured(command(one, args, work, hf), log, args.threads)

        def told(name, run):
            return f"{name:30} {run['real_tokens'] / run['cpu_seconds']:8,.0f} tokens a CPU second"

        runs, failures = harness.take_turns(chosen, args.repeats, measure, told=told)
    names = ("repeats", "threads", "steps", "warmup", "batch_size", "precision")
    result = {
        **harness.about(args, names, {}, load),
        "contestants": summarise(chosen, runs),
        "left_out": left_out,
        "failures": list(failures.values()),
    }
    harness.write_json(args.out / "text_speed.json", result)
    print(text_of(result))
    return harness.tell_failures(result["failures"])


if __name__ == "__main__":
    harness.run_main(main)
