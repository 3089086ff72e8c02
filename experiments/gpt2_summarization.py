"""GPT-2 for summaries, by prompt tuning, its last block, and LoRA; and
what it costs to count the prompt and the padding in the loss.

scripts/gpt2_summarization.sh calls it. What it leaves in --out: data/, data-mistake/, base/ (with
--tiny), runs/, and table.md and table.json.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path

import jobs
from jobs import SHARED, InputError, Run

SPLITS = ("train", "valid", "test")
TEXTS = ("article", "document", "text")
SUMMARIES = ("highlights", "summary", "abstract", "title")
#: Columns of OrangeSum's test file that hold what published systems wrote.
SYSTEMS = ("barthez", "mbarthez", "mbart", "camembert2camembert")
END = "<|endoftext|>"
CONFIG = {
    "model_type": "gpt2",
    "vocab_size": 2000,
    "n_positions": 144,
    "n_embd": 96,
    "n_layer": 2,
    "n_head": 4,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
TASK = ["--task", "causal_lm", "--criterion", "answers"]
LORA = ["--peft", "lora", "--lora-rank", 128, "--lora-alpha", 32, "--lora-dropout", 0.1]
PROMPT = ["--peft", "prompt", "--prompt-num-tokens", 6, "--prompt-init", "text"]
#: name -> what the table says, the method's flags, the rate's name, the data, the report's figures.
ROWS = {
    "prompt": (
        "prompt tuning, 6 tokens from `[SUMMARIZE]`",
        [*PROMPT, "--prompt-init-text", "[SUMMARIZE]"],
        "data",
        "7.90, 0.186, 4,608",
    ),
    "last_layers": (
        "last block and tied output embedding",
        ["--peft", "last_layers", "--last-layers-embeddings"],
        "data",
        "7.49, 0.109, 45,685,248",
    ),
    "lora": ("LoRA on `c_attn`, rank 128", LORA, "data", "7.13, 0.112, 4,718,592"),
    "lora-mistake": (
        "the same, loss over prompt and padding, too",
        LORA,
        "data-mistake",
        "-",
    ),
}


@dataclass(frozen=True)
class Setting:
    """
    Attributes:
        rows: of train, valid and test; 0 for all.
        max_tokens: of an article and its summary.
        max_summary: of the summary, with its end.
        rates: row -> learning rate.
        pretraining: updates on the articles of train; 0 where a model is given.
    """

    rows: tuple = (0, 0, 0)
    max_tokens: int = 512
    max_summary: int = 128
    epochs: int = 10
    batch_size: int = 8
    rates: tuple = (("prompt", 5e-5), ("last_layers", 5e-5), ("lora", 5e-5))
    pretraining: int = 0

    def rate(self, row: str) -> float:
        return dict(self.rates)[row.split("-")[0]]


PUBLISHED = Setting()
TINY = Setting(
    rows=(400, 80, 100),
    max_tokens=128,
    max_summary=32,
    epochs=2,
    rates=(("prompt", 3e-2), ("last_layers", 1e-3), ("lora", 2e-3)),
    pretraining=200,
)


# ---- Data ----------------------------------------------------------------------------------------


def read_news(folder: Path, target: str) -> dict[str, list[dict]]:
    """split -> rows with ``article``, ``summary`` and all columns of their file.

    Files are {train,valid,test}.jsonl, or .tsv or .csv, packed or not. ``target`` names the column
    of the summary; empty: the first of ``SUMMARIES`` that there is.

    Raises:
        InputError: a file or a column is missing.
    """
    return {split: _read_split(folder, split, target) for split in SPLITS}


def _read_split(folder: Path, split: str, target: str) -> list[dict]:
    import csv

    from fairseq_peft.text import sources

    names = {"valid": ("valid", "validation", "val", "dev")}.get(split, (split,))
    paths = [path for name in names for path in sorted(folder.glob(f"{name}.*"))]
    paths = [path for path in paths if re.search(r"\.(jsonl|tsv|csv)(\.gz|\.xz)?$", path.name)]
    if not paths:
        raise InputError(
            f"{folder} has no {split}.jsonl, .tsv or .csv: give --data with a folder of news, an "
            "article and its summary a row (OrangeSum, or CNN/DailyMail as JSON lines)."
        )
    with open(paths[0], "rb") as file:
        lines = [line.decode("utf-8") for line in sources.lines(file, str(paths[0]))]
    if ".jsonl" in paths[0].name:
        rows = [json.loads(line) for line in lines if line.strip()]
    elif ".tsv" in paths[0].name:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    else:
        rows = list(csv.DictReader(lines))
    text = next((name for name in TEXTS if name in rows[0]), None)
    summary = next((name for name in ([target] if target else SUMMARIES) if name in rows[0]), None)
    if text is None or summary is None:
        raise InputError(
            f"{paths[0]} has the columns {', '.join(rows[0])}. Expected one of {', '.join(TEXTS)} "
            f"and one of {target or ', '.join(SUMMARIES)}."
        )
    return [{**row, "article": row[text], "summary": row[summary]} for row in rows]


def as_pair(tokenizer, row: dict, setting: Setting) -> dict[str, str]:
    """A row of the task; of the article so much that its summary, and what is between, fit."""
    ask = "\nTL;DR:"
    # Cut text has other tokens at its end: four are left free.
    room = setting.max_tokens - setting.max_summary - len(tokenizer.encode(ask)) - 4
    article = tokenizer.decode(tokenizer.encode(row["article"])[:room]).strip()
    return {"prompt": f"{article}{ask}", "answer": row["summary"]}


def with_mistake(tokenizer, row: dict, setting: Setting) -> dict[str, str]:
    """The same row as the report had it: all but the first word is to be predicted, the article
    as well as the ends of text that fill the row up."""
    text = f"{row['prompt']} {row['answer']}"
    first, rest = text.split(" ", 1)
    missing = setting.max_tokens - 8 - len(tokenizer.encode(text))  # the first word has some
    return {"prompt": first, "answer": rest + END * max(missing, 0)}


def write_data(args, setting: Setting, base: Path) -> None:
    from fairseq_peft.text.folder_tokenizer import FolderTokenizer

    news = read_news(args.data, args.target or ("title" if args.made else ""))
    if setting.pretraining:
        articles = [row["article"] for row in news["train"]]
        size = CONFIG["vocab_size"]
        jobs.train_tokenizer(articles[:4000], base, size, [END])
        # The first word is given, as a prompt has a word; the loss is that of all others.
        words = [text.split()[i : i + 56] for text in articles for i in range(0, 224, 56)]
        rows = [{"prompt": w[0], "answer": " ".join(w[1:])} for w in words if len(w) > 20]
        chosen = rows[: 32 * setting.pretraining]
        jobs.write_rows(args.out / "pretraining-data" / "train.jsonl", chosen)
    tokenizer = FolderTokenizer(base)
    for split, limit in zip(SPLITS, setting.rows):
        rows = news[split][: limit or None]
        pairs = [as_pair(tokenizer, row, setting) for row in rows]
        mistakes = [with_mistake(tokenizer, row, setting) for row in pairs]
        jobs.write_rows(args.out / "data-mistake" / f"{split}.jsonl", mistakes)
        jobs.write_rows(args.out / "data" / f"{split}.jsonl", pairs)
    published = [name for name in SYSTEMS if name in news["test"][0]]
    checks = {name: [(row["abstract"], row[name]) for row in news["test"]] for name in published}
    jobs.write_rows(args.out / "published.jsonl", [checks] if checks else [])
    first = [re.split(r"(?<=[.!?]) ", row["article"])[0] for row in rows]
    lead = list(zip((row["summary"] for row in rows), first))
    jobs.write_rows(args.out / "lead.jsonl", [{"lead": lead}])


# ---- Runs ----------------------------------------------------------------------------------------


def our_run(name: str, seed: int, base: Path, setting: Setting, args) -> Run:
    _, method, data, _ = ROWS[name]
    task = [*TASK, "--max-prompt-tokens", setting.max_tokens, "--batch-size", setting.batch_size]
    room = setting.max_tokens - 8 if data == "data-mistake" else setting.max_summary
    flags = [
        *("--arch", "hf_causal_lm", "--hf-model", base, *method, "--seed", seed),
        *("--precision", "fp32", "--optimizer", "peft_adamw", "--lr", setting.rate(name)),
        *("--max-epoch", setting.epochs, "--max-answer-tokens", room, *args.extra),
    ]
    written = ["--max-answer-tokens", setting.max_summary, "--eval-rouge"]
    tests = {"test": (args.out / "data", written)}
    if data == "data-mistake":
        tests["own_test"] = (args.out / data, ["--max-answer-tokens", room])
    folder = args.out / "runs" / name / f"seed{seed}"
    return jobs.training(folder, args.out / data, task, flags, tests, seed=seed)


def rouge_run(args, name: str) -> Run:
    """ROUGE of texts that are there already, as the paper of OrangeSum has it: not stemmed."""

    def call():
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
        found = {}
        for line in (args.out / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            for system, rows in json.loads(line).items():
                scores = [scorer.score(*pair) for pair in rows]
                found[system] = {
                    kind: sum(score[kind].fmeasure for score in scores) / len(scores)
                    for kind in scores[0]
                }
        return {"rouge": found}

    return Run(args.out / name, [["# ROUGE of", args.out / f"{name}.jsonl"]], call)


# ---- The table -----------------------------------------------------------------------------------


def table(setting: Setting, args) -> None:
    lines, results = [], {}
    for name, (text, _, _, published) in ROWS.items():
        found = results[name] = jobs.results_of(args.out, name)
        trainable, total = (found[0][f"{kind}_parameters"] for kind in ("trainable", "total"))
        lines.append(
            [
                text,
                jobs.mean_sd([one["test"]["loss"] for one in found], 3),
                jobs.mean_sd([one["test"]["rougeL"] for one in found], 3),
                f"{trainable:,} of {total:,}",
                jobs.mean_sd([one["train_cpu_seconds"] for one in found], 0),
                f"{max(one['peak_memory_bytes'] for one in found) / 1e9:.2f}",
                published,
            ]
        )
    rouge = {}
    for name in ("lead", "published"):
        path = args.out / name / jobs.RESULT
        if path.is_file():
            rouge.update(json.loads(path.read_text(encoding="utf-8"))["rouge"])
    lead = rouge.pop("lead")
    lines.append(["the article's first sentence", "-", f"{lead['rougeL']:.3f}", *["-"] * 4])
    own = jobs.mean_sd([one["own_test"]["loss"] for one in results["lora-mistake"]], 3)
    counts = [
        len((args.out / "data" / f"{s}.jsonl").read_text(encoding="utf-8").splitlines())
        for s in SPLITS
    ]
    rates = ", ".join(f"{name} {rate:g}" for name, rate in setting.rates)
    sizes = " / ".join(f"{count:,}" for count in counts)
    note = (
        f"{sizes} articles of train, valid and test; article and summary {setting.max_tokens} "
        f"tokens, {setting.epochs} epochs, batches of "
        f"{setting.batch_size}, seeds {', '.join(map(str, args.seeds))}; the epoch with the least "
        f"loss on valid. Rates: {rates}. Losses in nats a token of the summaries, whatever was "
        f"trained on; the run with the mistake itself reports {own}, over all {setting.max_tokens} "
        "places. Memory is the process's peak."
    )
    if rouge:
        checked = "; ".join(
            f"{name} " + " / ".join(f"{100 * value:.2f}" for value in scores.values())
            for name, scores in rouge.items()
        )
        note += (
            "\n\nROUGE-1 / 2 / L of what published systems wrote for OrangeSum's test, against its "
            f"abstracts, by the same package: {checked}."
        )
    header = ["method", "test loss", "ROUGE-L F1", "trainable parameters", "CPU s", "memory GB"]
    header += ["report: GPT-2 small (loss, ROUGE-L, trainable)"]
    jobs.write_table(args.out, header, lines, note, {"runs": results, "lead": lead, "rouge": rouge})


# ---- The command ---------------------------------------------------------------------------------


def flags() -> argparse.ArgumentParser:
    made = jobs.parser(
        __doc__,
        "GPT-2",
        "GPT-2 small",
        "news (FAIRSEQ_PEFT_SHARED/data/orangesum)",
        "gpt2_summarization",
    )
    made.set_defaults(data=SHARED / "data" / "orangesum")
    made.add_argument("--target", default="", help="column of the summary (the first there is)")
    return made


def main(argv=None, tiny: Setting = TINY) -> None:
    args = jobs.parse(flags(), argv, PUBLISHED, {"tiny": tiny})
    base, setting = args.base, args.setting
    jobs.prepare(args, lambda: write_data(args, setting, base), "GPT2LMHeadModel")
    room = setting.max_tokens
    limits = ["--max-prompt-tokens", room, "--max-answer-tokens", room - 8]
    jobs.make_base(args, [*TASK, "--arch", "hf_causal_lm", *limits], CONFIG, batch_size=32)
    runs = [our_run(name, seed, base, setting, args) for name in ROWS for seed in args.seeds]
    jobs.run_all([rouge_run(args, "published"), rouge_run(args, "lead")], args.jobs, args.dry_run)
    jobs.run_all(runs, args.jobs, args.dry_run)
    if not args.dry_run:
        table(setting, args)


if __name__ == "__main__":
    jobs.start("gpt2_summarization")
    main()
