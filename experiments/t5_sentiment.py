"""T5 on film reviews, the answer is a word. Fine-tuning of all weights,
soft prompts, adapters and LoRA, each with seeds, beside PEFT's and AdapterHub's on the same model,
rows and rates.

scripts/t5_sentiment.sh calls it. What it leaves in --out: data/, base/ (if it makes one), runs/,
and table.md and table.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import jobs
from jobs import ROOT, SHARED, InputError, Run

#: What data sets call a class -> its number.
CLASSES = {"neg": 0, "pos": 1, "negative": 0, "positive": 1, "0": 0, "1": 1}
SPECIAL = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in range(32))]
TASK = ["--task", "text_to_text", "--criterion", "answers"]


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        by: whose code.
        size: tokens, bottleneck or rank; 0 where there is none.
        published: the report's accuracy; - where it has no such row.
    """

    method: str
    by: str
    size: int
    published: str

    @property
    def name(self) -> str:
        return "-".join(word for word in (self.by, self.method, str(self.size or "")) if word)


ROWS = (
    Row("full", "ours", 0, "90.1"),
    Row("prompt", "ours", 1, "-"),
    Row("prompt", "ours", 10, "87.1"),
    Row("prompt", "PEFT", 1, "85.0 (OpenDelta)"),
    Row("prompt", "PEFT", 10, "86.5 (OpenDelta)"),
    Row("adapter", "ours", 1, "-"),
    Row("adapter", "ours", 8, "90.5"),
    Row("adapter", "AdapterHub", 1, "89.1"),
    Row("adapter", "AdapterHub", 8, "90.1"),
    Row("lora", "ours", 1, "-"),
    Row("lora", "ours", 8, "89.1"),
    Row("lora", "PEFT", 1, "88.5"),
    Row("lora", "PEFT", 8, "88.7"),
)


#: Of the model that --tiny makes.
CONFIG = {
    "model_type": "t5",
    "vocab_size": 4000,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


@dataclass(frozen=True)
class Setting:
    """
    Attributes:
        form: what is asked of a review, ``{}``.
        labels: the answer to a bad one, and to a good one.
        rows: of train, valid and test; 0 for all.
        words: the last words of a review that are read; 0 for all.
        rates: method -> learning rate.
        pretraining: updates of span corruption; 0 where a model is given.
        config: of the model that is made.
    """

    form: str
    labels: tuple
    rows: tuple
    words: int
    max_tokens: int
    epochs: int
    batch_size: int
    rates: dict
    pretraining: int = 0
    config: dict = field(default_factory=lambda: CONFIG)


PUBLISHED = Setting(
    form="sentiment: {}",
    labels=("negative", "positive"),
    rows=(0, 0, 0),
    words=0,
    max_tokens=512,
    epochs=3,
    batch_size=16,
    rates={"full": 3e-4, "prompt": 3e-2, "adapter": 1e-3, "lora": 1e-3},
)
TINY = Setting(
    # A gap, as in pre-training: minutes of it teach nothing else.
    form="{} All in all it is <extra_id_0>",
    labels=("<extra_id_0> bad", "<extra_id_0> good"),
    rows=(3000, 300, 1000),
    words=48,
    max_tokens=128,
    epochs=4,
    batch_size=32,
    rates={"full": 1e-2, "prompt": 5e-2, "adapter": 2e-2, "lora": 2e-2},
    pretraining=500,
)
SMALL = replace(
    TINY,
    rows=(0, 400, 2000),
    words=160,
    max_tokens=256,
    epochs=2,
    rates={"full": 2e-3, "prompt": 5e-2, "adapter": 5e-3, "lora": 5e-3},
    pretraining=1500,
    config={
        **CONFIG,
        "vocab_size": 8000,
        "d_model": 256,
        "d_kv": 32,
        "d_ff": 512,
        "num_layers": 3,
        "num_decoder_layers": 2,
        "num_heads": 8,
    },
)


# ---- Data ----------------------------------------------------------------------------------------


def read_reviews(path: Path) -> dict[str, list[tuple[str, int]]]:
    """split -> (review, class, 1 if it is good) in the order of the files.

    ``path`` is the published folder tree (train/pos/*.txt ...), a CSV with review and sentiment, or
    what scripts/prepare_data.sh reads.

    Raises:
        InputError: it is none of them, or has another label.
    """
    from fairseq_peft.text.corpus import read_corpus
    from fairseq_peft.text.tables import Columns

    if (path / "train" / "pos").is_dir():
        found = _read_tree(path)
    else:
        columns = Columns(text="review", label="sentiment") if path.suffix == ".csv" else Columns()
        shares = {"valid_share": 0.1, "test_share": 0.5} if path.is_file() else {}
        corpus = read_corpus(path, columns=columns, **shares)
        found = {split: [(r.text, r.label) for r in rows] for split, rows in corpus.rows.items()}
    for split, rows in found.items():
        for _, label in rows:
            if label not in CLASSES:
                raise InputError(f"{path}, {split}: {label!r} is none of {', '.join(CLASSES)}.")
        found[split] = [(text, CLASSES[label]) for text, label in rows]
    return found


def _read_tree(path: Path) -> dict[str, list[tuple[str, str]]]:
    """The tree has no valid: a fifth of train, drawn with one seed."""
    found = {}
    for split in ("train", "test"):
        found[split] = [
            (file.read_text(encoding="utf-8").replace("<br />", " "), label)
            for label in ("neg", "pos")
            for file in sorted((path / split / label).glob("*.txt"))
        ]
        random.Random(1).shuffle(found[split])
    cut = len(found["train"]) // 5
    found["valid"], found["train"] = found["train"][:cut], found["train"][cut:]
    return found


def span_corruption(words: list[str], draw: random.Random) -> dict[str, str]:
    """A row of T5's pre-training: of the words 15 %, in spans of 1 to 5, are asked for.

    ``a b c d`` -> ``{"input": "a <extra_id_0> d", "target": "<extra_id_0> b c <extra_id_1>"}``.
    """
    number = max(1, round(0.15 * len(words) / 3))
    size = len(words) // number
    given, asked = [], []
    for span in range(number):
        part = words[span * size : (span + 1) * size if span < number - 1 else None]
        length = min(draw.randint(1, 5), len(part))
        start = draw.randint(0, len(part) - length)
        mark = f"<extra_id_{span}>"
        given += [*part[:start], mark, *part[start + length :]]
        asked += [mark, *part[start : start + length]]
    return {"input": " ".join(given), "target": " ".join([*asked, f"<extra_id_{number}>"])}


def write_data(source: Path, out: Path, setting: Setting) -> None:
    """The rows of every split, once as models read them and once for TF-IDF; with ``pretraining``
    the tokenizer and its rows, too."""
    if not source.exists():
        raise InputError(
            f"{source} does not exist: the reviews of IMDB are needed. Give --data with the "
            "published folder (train/pos ...), or a CSV with review and sentiment."
        )
    reviews = read_reviews(source)
    for split, limit in zip(("train", "valid", "test"), setting.rows):
        rows = reviews[split][: limit or None]
        texts = [" ".join(text.split()[-setting.words :]) for text, _ in rows]
        labels = [label for _, label in rows]
        asked = [
            {"input": setting.form.format(text), "target": setting.labels[label]}
            for text, label in zip(texts, labels)
        ]
        jobs.write_rows(out / "data" / f"{split}.jsonl", asked)
        for folder, words in (("cut", texts), ("whole", [" ".join(t.split()) for t, _ in rows])):
            (out / "raw" / folder).mkdir(parents=True, exist_ok=True)
            for kind, lines in (("review", words), ("label", labels)):
                path = out / "raw" / folder / f"{split}.{kind}"
                path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if not setting.pretraining:
        return
    texts = [text for text, _ in reviews["train"]]
    jobs.train_tokenizer(
        texts[:5000], out / "base", setting.config["vocab_size"], SPECIAL, lowercase=True
    )
    draw, rows = random.Random(1), []
    for text in texts:
        words = text.split()
        for start in range(0, len(words) - 19, setting.words):
            rows.append(span_corruption(words[start : start + setting.words], draw))
    draw.shuffle(rows)
    jobs.write_rows(out / "pretraining-data" / "train.jsonl", rows[: setting.pretraining * 64])


# ---- Runs ----------------------------------------------------------------------------------------


def method_flags(row: Row) -> list:
    if row.method == "full":
        return ["--peft", "full"]
    return [
        *("--peft", row.method),
        *{
            "prompt": ("--prompt-num-tokens", row.size),
            "adapter": ("--adapter-bottleneck", row.size),
            "lora": ("--lora-rank", row.size, "--lora-alpha", 2 * row.size),
        }[row.method],
    ]


def our_run(row: Row, seed: int, base: Path, setting: Setting, args) -> Run:
    task = [
        *TASK,
        "--labels",
        ",".join(setting.labels),
        "--max-prompt-tokens",
        setting.max_tokens,
        "--max-answer-tokens",
        8,
    ]
    task += ["--batch-size", setting.batch_size]
    flags = [
        *("--arch", "hf_seq2seq", "--hf-model", base, *method_flags(row), "--seed", seed),
        *("--precision", "fp32", "--optimizer", "peft_adamw", "--weight-decay", 0),
        *("--lr", setting.rates[row.method]),
        *("--max-epoch", setting.epochs, "--best-checkpoint-metric", "accuracy"),
        *("--maximize-best-checkpoint-metric", *args.extra),
    ]
    folder = args.out / "runs" / row.name / f"seed{seed}"
    tests = {"test": (args.out / "data", [])}
    return jobs.training(folder, args.out / "data", task, flags, tests, seed=seed)


def library_runs(by: str, python: str, rows, base: Path, setting: Setting, args) -> list[Run]:
    """One process makes all runs of a library, as its import takes as long as a run."""
    asked = [
        {
            "method": row.method,
            "size": row.size,
            "seed": seed,
            "lr": setting.rates[row.method],
            "folder": str(args.out / "runs" / row.name / f"seed{seed}"),
        }
        for row in rows
        if row.by == by
        for seed in args.seeds
    ]
    if not asked:
        return []
    folder = args.out / "runs" / f"{by}-all"
    given = {
        "base": str(base),
        "data": str(args.out / "data"),
        "labels": setting.labels,
        "max_tokens": setting.max_tokens,
        "epochs": setting.epochs,
        "batch_size": setting.batch_size,
        "runs": asked,
    }
    words = [python, ROOT / "experiments" / "libraries.py", by, folder / "runs.json"]

    def call():
        import subprocess

        jobs.write_json(folder / "runs.json", given)
        subprocess.run(list(map(str, words)), check=True, stdout=1, stderr=2)
        return {}

    return [Run(folder, [words], call)]


def find_libraries(args) -> dict[str, str]:
    """Library -> a Python that has it."""
    wanted = {"PEFT": (args.peft_python, "peft"), "AdapterHub": (args.adapters_python, "adapters")}
    found = {}
    for by, (python, name) in wanted.items():
        python = python or str(ROOT / f".venv-{name}/bin/python")
        if os.access(python, os.X_OK) or args.dry_run:
            found[by] = python
        else:
            print(
                f"Without the rows of {by}: {python} does not exist. scripts/test.sh parity makes "
                "it.",
                file=sys.stderr,
            )
    return found


# ---- The table -----------------------------------------------------------------------------------


def tfidf(out: Path) -> dict[str, float]:
    """Accuracy on test of the baseline, on what models read and on whole reviews."""
    from fairseq_peft.report.tfidf import run_tfidf

    found = {}
    for name in ("cut", "whole"):
        result = out / "runs" / name / "baseline" / "tfidf" / "seed1" / "result.json"
        if not result.is_file():
            run_tfidf(out / "raw" / name, out / "runs", name)
        found[name] = json.loads(result.read_text(encoding="utf-8"))["test_accuracy"]
    return found


def table(rows, setting: Setting, args) -> None:
    lines, results = [], {}
    baseline = tfidf(args.out)
    for row in rows:
        found = jobs.results_of(args.out, row.name)
        if not found:
            continue
        accuracies = [one["test"]["accuracy"] for one in found]
        results[row.name] = {
            "published": row.published,
            "seeds": [one["seed"] for one in found],
            "test_accuracies": accuracies,
            **{key: found[0][key] for key in ("trainable_parameters", "total_parameters")},
            "train_cpu_seconds": [one["train_cpu_seconds"] for one in found],
            "learning_rate": setting.rates[row.method],
        }
        lines.append(
            [
                f"{row.method}{f' {row.size}' if row.size else ''}, {row.by}",
                f"{found[0]['trainable_parameters']:,}",
                f"{found[0]['total_parameters']:,}",
                jobs.mean_sd(accuracies, 1, 100),
                jobs.mean_sd([one["train_cpu_seconds"] for one in found], 0),
                row.published,
            ]
        )
    for name, text in (("cut", "the words that models read"), ("whole", "whole reviews")):
        results[f"tfidf-{name}"] = {"test_accuracies": [baseline[name]]}
        lines.append([f"TF-IDF, {text}", "-", "-", f"{100 * baseline[name]:.1f}", "-", "-"])
    counts = [len(_lines(args.out / "data" / f"{s}.jsonl")) for s in ("train", "valid", "test")]
    note = (
        f"{' / '.join(f'{count:,}' for count in counts)} reviews of train, valid and test, "
        + (f"the last {setting.words} words of each" if setting.words else "whole")
        + f"; {setting.epochs} epochs, batches of {setting.batch_size}, seeds "
        f"{', '.join(map(str, args.seeds))}; the epoch that is best on valid. Rates: "
        + ", ".join(f"{name} {rate:g}" for name, rate in setting.rates.items())
        + ". PEFT's soft prompt has one prompt (num_transformer_submodules=1), drawn from the "
        "vocabulary, as OpenDelta's."
    )
    header = ["method", "trainable", "total", "test accuracy %", "CPU s", "report: T5-small"]
    jobs.write_table(args.out, header, lines, note, results)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


# ---- The command ---------------------------------------------------------------------------------


def flags() -> argparse.ArgumentParser:
    made = jobs.parser(
        __doc__, "T5", "T5-small", "reviews (FAIRSEQ_PEFT_SHARED/data/imdb)", "t5_sentiment"
    )
    made.set_defaults(data=SHARED / "data" / "imdb")
    made.add_argument("--small", action="store_true", help="a larger one than --tiny: hours")
    made.add_argument("--only", default="", help="rows, such as ours-full,PEFT-lora-8")
    made.add_argument("--peft-python", default="", help="a Python with PEFT (.venv-peft)")
    made.add_argument("--adapters-python", default="", help="with AdapterHub (.venv-adapters)")
    return made


def choose(only: str) -> list[Row]:
    """Rows by their names; without, the report's ten."""
    names = [name for name in only.split(",") if name]
    unknown = set(names) - {row.name for row in ROWS}
    if unknown:
        known = ", ".join(row.name for row in ROWS)
        raise InputError(f"--only {unknown.pop()} is no row. There are: {known}.")
    return [row for row in ROWS if (row.name in names if names else row.published != "-")]


def main(argv=None, tiny: Setting = TINY) -> None:
    args = jobs.parse(flags(), argv, PUBLISHED, {"tiny": tiny, "small": SMALL})
    base, setting = args.base, args.setting
    rows = choose(args.only)
    libraries = find_libraries(args)
    jobs.prepare(
        args, lambda: write_data(args.data, args.out, setting), "T5ForConditionalGeneration"
    )
    task = [*TASK, "--arch", "hf_seq2seq", "--max-prompt-tokens", setting.max_tokens]
    precision = "auto" if args.small else "fp32"
    jobs.make_base(args, task, setting.config, batch_size=64, precision=precision)
    runs = [
        run
        for by, python in libraries.items()
        for run in library_runs(by, python, rows, base, setting, args)
    ]
    ours = [row for row in rows if row.by == "ours"]
    runs += [our_run(row, seed, base, setting, args) for row in ours for seed in args.seeds]
    jobs.run_all(runs, args.jobs, args.dry_run)
    if not args.dry_run:
        table(rows, setting, args)


if __name__ == "__main__":
    jobs.start("t5_sentiment")
    main()
