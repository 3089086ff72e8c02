"""LoRA on BLOOM, from instructions to answers, and the curve of its loss.

scripts/bloom_instructions.sh calls it. What it leaves in --out: data/, base/ (with --tiny), runs/,
tensorboard/, loss.png and loss.svg, table.md and table.json.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import jobs
from jobs import InputError, Run

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hal", "Ivy", "Jan", "Kim", "Leo")
THINGS = ("book", "ring", "drum", "lamp", "boat", "coat", "kite", "vase", "fork", "harp")
CITIES = ("Rome", "Oslo", "Lima", "Bern", "Cairo", "Delhi", "Quito", "Tunis")
END = "</s>"
CONFIG = {
    "model_type": "bloom",
    "vocab_size": 600,
    "hidden_size": 96,
    "n_layer": 2,
    "n_head": 4,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
LORA = [
    *("--peft", "lora", "--peft-targets", "query_key_value", "--lora-rank", 16),
    *("--lora-alpha", 32, "--lora-dropout", 0.05),
]
TASK = ["--task", "causal_lm", "--criterion", "answers"]
ANSWERS = ["--max-answer-tokens", 64]
FORM = "### Instruction: {}\n### Answer:"


@dataclass(frozen=True)
class Setting:
    """
    Attributes:
        rows: of generated train, valid and test.
        pretraining: updates on plain sentences; 0 where a model is given.
    """

    rows: tuple = (2000, 200, 200)
    max_tokens: int = 512
    epochs: int = 3
    batch_size: int = 8
    lr: float = 2e-4
    pretraining: int = 0


PUBLISHED = Setting()
TINY = Setting(max_tokens=96, batch_size=16, lr=1e-3, pretraining=300)


# ---- Data ----------------------------------------------------------------------------------------


def facts() -> dict[str, tuple[str, str]]:
    """Who has what, and lives where: the same in pre-training and in questions."""
    draw = random.Random(1)
    return {name: (draw.choice(THINGS), draw.choice(CITIES)) for name in NAMES}


def sentence(name: str) -> str:
    thing, city = facts()[name]
    return f"{name} has a {thing} and lives in {city}."


def statement(draw: random.Random) -> str:
    """A plain text, as a base is trained on."""
    return " ".join(sentence(name) for name in draw.sample(NAMES, 3))


def question(draw: random.Random) -> dict[str, str]:
    """An instruction and its answer."""
    name = draw.choice(NAMES)
    thing, city = facts()[name]
    asked, answer = draw.choice(
        [
            (f"Where does {name} live?", city),
            (f"What does {name} have?", f"a {thing}"),
            (f"Tell me all about {name}.", sentence(name)),
        ]
    )
    polite = draw.choice(("", "Please answer. ", "I have a question. ", "Be brief. "))
    return {"prompt": FORM.format(polite + asked), "answer": answer}


def read_pairs(path: Path) -> list[dict[str, str]]:
    """JSON lines with ``instruction`` (and ``input``) and ``output``, or ``prompt`` and ``answer``.

    Raises:
        InputError: it is something else.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            prompt = row["prompt"] if "prompt" in row else row["instruction"]
            answer = row["answer"] if "answer" in row else row["output"]
            asked = "\n".join(text for text in (prompt, row.get("input", "")) if text)
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path}, line {number}: expected JSON with instruction and output, or prompt and "
                "answer."
            ) from None
        found.append({"prompt": FORM.format(asked), "answer": answer})
    return found


def write_data(source: Path | None, out: Path, setting: Setting) -> None:
    draw = random.Random(1)
    if source is None:
        parts = [[question(draw) for _ in range(number)] for number in setting.rows]
    else:
        rows = read_pairs(source)
        if len(rows) < 20:
            raise InputError(f"{source} has {len(rows)} rows: 20 are needed, to be split.")
        draw.shuffle(rows)
        held = len(rows) // 20
        parts = [rows[2 * held :], rows[:held], rows[held : 2 * held]]
    for split, rows in zip(("train", "valid", "test"), parts):
        jobs.write_rows(out / "data" / f"{split}.jsonl", rows)
    if not setting.pretraining:
        return
    # The first word is given, as a prompt has a word; the loss is that of all others.
    texts = [statement(draw) for _ in range(32 * setting.pretraining)]
    jobs.train_tokenizer(
        [*texts[:2000], *(f"{row['prompt']} {row['answer']}" for row in parts[0])],
        out / "base",
        CONFIG["vocab_size"],
        [END, "<pad>"],
    )
    pieces = [text.split(" ", 1) for text in texts]
    rows = [{"prompt": first, "answer": rest} for first, rest in pieces]
    jobs.write_rows(out / "pretraining-data" / "train.jsonl", rows)


# ---- Runs ----------------------------------------------------------------------------------------


def lora_run(seed: int, base: Path, setting: Setting, args) -> Run:
    task = [*TASK, "--max-prompt-tokens", setting.max_tokens, *ANSWERS]
    task += ["--batch-size", setting.batch_size]
    flags = [
        *("--arch", "hf_causal_lm", "--hf-model", base, *LORA, "--seed", seed),
        *("--precision", "fp32", "--optimizer", "peft_adamw", "--lr", setting.lr),
        *("--max-epoch", setting.epochs, "--log-interval", 5),
        *("--tensorboard-logdir", args.out / "tensorboard" / f"seed{seed}", *args.extra),
    ]
    folder = args.out / "runs" / "lora" / f"seed{seed}"
    tests = {"test": (args.out / "data", ["--eval-rouge"])}
    return jobs.training(folder, args.out / "data", task, flags, tests, seed=seed)


def curve(log: Path) -> list[tuple[int, float]]:
    """Updates and training loss, in nats a token of the answers."""
    lines = jobs.logged(log, "train_inner")
    return [(int(line["num_updates"]), line["loss"]) for line in lines]


def draw_curves(out: Path, curves: dict[int, list]) -> None:
    """loss.png and loss.svg: the training loss of every seed."""
    from fairseq_peft.report import drawing

    with drawing.settings():
        figure, (axes,) = drawing.figure(7, 4)
        for number, (seed, points) in enumerate(sorted(curves.items())):
            colour, _, line = drawing.style(number)
            axes.plot(*zip(*points), color=colour, ls=line, lw=1.5, label=f"seed {seed}")
        axes.set_xlabel("updates")
        axes.set_ylabel("training loss (nats a token of the answers)")
        axes.set_ylim(bottom=0)
        axes.legend()
        drawing.save(figure, out, "loss")


def table(setting: Setting, args) -> None:
    found = jobs.results_of(args.out, "lora")
    curves = {
        one["seed"]: curve(args.out / "runs" / "lora" / f"seed{one['seed']}" / "log")
        for one in found
    }
    draw_curves(args.out, curves)
    lines = []
    for one in found:
        points, total = curves[one["seed"]], one["total_parameters"]
        share = 100 * one["trainable_parameters"] / total
        lines.append(
            [
                f"LoRA 16, seed {one['seed']}",
                f"{one['trainable_parameters']:,} of {total:,} ({share:.4f} %)",
                f"{points[0][1]:.3f}",
                f"{points[-1][1]:.3f}",
                f"{one['test']['loss']:.3f}",
                f"{one['test']['rouge1']:.3f}",
                f"{one['train_cpu_seconds']:.0f}",
            ]
        )
    header = ["run", "trainable", "first loss", "last loss", "test loss", "ROUGE-1", "CPU s"]
    note = (
        "Losses in nats a token of the answers; the first and the last are means of 5 updates in "
        f"training. {setting.epochs} epochs, batches of {setting.batch_size}, rate {setting.lr:g}, "
        "dropout 0.05 on LoRA's input, on query_key_value."
    )
    results = {"runs": found, "curves": curves}
    jobs.write_table(args.out, header, lines, note, results)


# ---- The command ---------------------------------------------------------------------------------


def main(argv=None, tiny: Setting = TINY) -> None:
    flags = jobs.parser(
        __doc__,
        "BLOOM",
        "BLOOM-560m",
        "JSON lines, instruction and output (generated)",
        "bloom_instructions",
    )
    args = jobs.parse(flags, argv, PUBLISHED, {"tiny": tiny})
    base, setting = args.base, args.setting
    jobs.prepare(args, lambda: write_data(args.data, args.out, setting), "BloomForCausalLM")
    task = [*TASK, "--arch", "hf_causal_lm", "--max-prompt-tokens", setting.max_tokens, *ANSWERS]
    jobs.make_base(args, task, CONFIG, batch_size=32)
    runs = [lora_run(seed, base, setting, args) for seed in args.seeds]
    jobs.run_all(runs, args.jobs, args.dry_run)
    if not args.dry_run:
        table(setting, args)


if __name__ == "__main__":
    jobs.start("bloom_instructions")
    main()
