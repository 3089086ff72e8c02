"""Folders of runs as a sweep leaves them, written in a second: for reports to be looked at.

    python tests/support/fake_runs.py FOLDER     RUNS and data of three kinds of task, in FOLDER

Every row of test has a difficulty, every method a skill; a run's curve, predictions and result.json
agree with each other, as those of real runs do.
"""

import json
import sys
from pathlib import Path

import numpy as np

from fairseq_peft.report.result import summarise, write_result
from fairseq_peft.runs import plan, predictions

#: method -> (skill, trainable parameters, learning rate, seconds an epoch, knobs)
METHODS = {
    "full": (1.32, 23_092_738, 1e-4, 212, {}),
    "lora": (1.30, 411_138, 1e-3, 171, {"rank": 8, "alpha": 16.0, "targets": "q_proj,v_proj"}),
    "dora": (1.29, 414_210, 1e-3, 204, {"rank": 8, "alpha": 16.0, "targets": "q_proj,v_proj"}),
    "adapter": (1.33, 562_946, 5e-4, 158, {"bottleneck": 32, "style": "pfeiffer"}),
    "bitfit": (1.12, 308_738, 1e-3, 149, {}),
    "ia3": (1.02, 271_106, 5e-3, 151, {"targets": "k_proj,v_proj,fc2"}),
    "prefix": (0.97, 320_002, 3e-3, 166, {"positions": 16}),
    "prompt": (0.78, 273_922, 1e-2, 169, {"positions": 20}),
    "head_only": (0.55, 263_682, 5e-3, 96, {}),
}
TEXTS = (
    "The plot drags for a hundred pages, then ends before anything is explained.",
    "I bought it for the photographs, and they are the only reason to keep it.",
    "Not what I expected at all, and I mean that as praise: read it in one night.",
    "Well researched, badly edited. The index alone has a dozen wrong page numbers.",
    "Everybody told me I would love this book. Everybody was half right. The first half moves "
    "slowly and asks for patience, with its long digressions on sailing, on bread and on the "
    "weather of the coast; the second rewards it so fully that I went back and read the first "
    "again. Whether that is a fault of the author or of the reader I cannot say.",
)


def counts_of(kind, target, predicted):
    """One subset of a line of metrics.jsonl."""
    hits = int(predictions.right(target, predicted).sum())
    found = {"loss": 0.4, "num_examples": len(target), "seconds": 8.0}
    if kind == "number":
        pearson = float(np.corrcoef(target, predicted)[0, 1])
        error = float(np.mean((target - predicted) ** 2))
        return {**found, "pearson": pearson, "spearman": 0.97 * pearson, "mse": error}
    share = hits / len(target)
    found.update(num_correct=hits, accuracy=share, macro_f1=share - 0.002)
    if kind == "labels":
        return {**found, "micro_f1": (1 + share) / 2}
    return {**found, "mcc": max(0.0, 2 * share - 1)}


def answers(rng, kind, target, ease, num_labels):
    """Predictions that are right where ``ease`` (rows,) is above 0."""
    if kind == "number":
        return target + rng.normal(0, 1, len(target)) / (0.6 + np.abs(ease))
    if kind == "labels":
        flips = (ease < 0)[:, None] & (np.arange(num_labels) == rng.integers(num_labels))
        return np.where(flips, 1 - target, target)
    other = (target + rng.integers(1, num_labels, len(target))) % num_labels
    return np.where(ease > 0, target, other)


def write_data(folder, kind, labels, num_rows, texts=TEXTS):
    """``folder``/raw of a data folder; the targets of test."""
    rng = np.random.default_rng(7)
    if kind == "number":
        target = np.round(rng.uniform(0, 5, num_rows), 1)
        names = [str(value) for value in target]
    elif kind == "labels":
        target = (rng.random((num_rows, len(labels))) < 0.4).astype(int)
        names = [" ".join(labels[k] for k in row.nonzero()[0]) for row in target]
    else:
        target = rng.permutation(np.arange(num_rows) % len(labels))
        names = [labels[k] for k in target]
    raw = Path(folder) / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    rows = [texts[int(k)] for k in rng.integers(len(texts), size=num_rows)]
    (raw / "test.review").write_text("".join(f"{text}\n" for text in rows), encoding="utf-8")
    (raw / "test.label").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return target


def write_run(
    runs,
    data,
    target,
    method="lora",
    seed=1,
    init="pretrained",
    kind="classes",
    labels=("bad", "good"),
    skill=1.3,
    parameters=411_138,
    lr=1e-3,
    seconds=150,
    knobs=None,
    epochs=6,
    train_rows=1600,
    base_method=None,
    with_predictions=True,
):
    """One finished run below ``runs``; ``data`` is its data folder. Its folder."""
    rng = np.random.default_rng([seed, *map(ord, method + init)])
    hard = np.random.default_rng(3).normal(0, 1, len(target))  # the same for every run
    labels, data = list(labels), Path(data)
    folder = Path(runs) / data.name / init / method / f"seed{seed}"
    folder.mkdir(parents=True)
    metric = {"classes": "accuracy", "labels": "micro_f1", "number": "pearson"}[kind]
    flags = ["--peft", base_method or method] if method != "full" else []
    flags += ["--train-examples", str(train_rows)] if train_rows != 1600 else []
    words = [str(data), "--user-dir", "fairseq_peft", "--arch", "roberta_small", *flags]
    words += ["--task", "sentence_classification", "--criterion", "sentence_classification"]
    words += ["--lr", f"{lr:g}", "--lr-scheduler", "polynomial_decay", "--warmup-updates", "36"]
    words += ["--max-epoch", str(epochs), "--batch-size", "16", "--seed", str(seed)]
    words += ["--best-checkpoint-metric", metric, "--save-dir", str(folder)]
    run = {
        "schema": 1,
        "data": data.name,
        "init": init,
        "method": method,
        "peft": base_method or method,
        "seed": seed,
        "arch": "roberta_small_peft",
        "base": None if init == "scratch" else "model.pt",
        "method_config": knobs or {},
        "labels": labels,
        "kind": kind,
        "chosen_by": {"metric": metric, "subset": "valid", "maximize": True},
        "validated": {"every_epochs": 1, "after_updates": 0, "test": "each"},
        "rows": {"train": train_rows, "valid": len(target) // 4, "test": len(target)},
        "trainable_parameters": parameters,
        "method_parameters": parameters - 263_682,
        "head_parameters": 263_682,
        "total_parameters": 23_388_418,
        "task_bytes": 4 * parameters,
        "hyperparameters": {"lr": lr, "batch_size": 16, "max_epoch": epochs, "precision": "fp32"},
        "versions": {"fairseq_peft": "0.1.0", "torch": "2.13.0+cpu", "fairseq": "0.12.3.1"},
        "device": "cpu",
        "threads": 2,
        "command": " ".join(["fairseq-train", *words]),
    }
    lines, found = [], {}
    luck = rng.normal(0, 0.05)
    noise = rng.normal(0, 0.35, len(target))
    for epoch in range(1, epochs + 1):
        learned = (skill + luck) * (1 - 0.75 * np.exp(-0.8 * epoch)) + rng.normal(0, 0.02)
        ease = learned - hard + noise
        subsets, kept = {}, predictions.Predictions(epoch=epoch)
        for split, size in (("valid", len(target) // 4), ("test", len(target))):
            mine = target[:size]
            predicted = answers(rng, kind, mine, ease[:size], max(len(labels), 2))
            kept.add(split, mine, predicted)
            subsets[split] = counts_of(kind, mine, predicted)
        found[epoch] = kept
        train = {"loss": 0.7 * 0.6**epoch, "num_tokens": 190_000, "seconds": seconds + luck}
        line = {"epoch": epoch, "num_updates": 100 * epoch, "peak_memory_bytes": 2_100_000_000}
        lines.append(json.dumps({**line, "train": train, "subsets": subsets}) + "\n")
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    plan.write(folder, plan.make(words, files=False))
    result = summarise(folder)
    if with_predictions:
        predictions.write(folder / predictions.NAME, found[result["best_epoch"]])
    write_result(folder, result)
    return folder


def write_methods(runs, data, target, seeds=(1, 2, 3), methods=METHODS, **changes):
    """A run of every method and seed."""
    for method in methods:
        names = ("skill", "parameters", "lr", "seconds", "knobs")
        knobs = {**dict(zip(names, METHODS[method])), **changes}
        for seed in seeds:
            write_run(runs, data, target, method, seed, **knobs)


def write_all(folder):
    """Everything a report can show, in ``folder``/runs and ``folder``/data-bin."""
    runs, data_bin = Path(folder) / "runs", Path(folder) / "data-bin"
    books = data_bin / "books"
    target = write_data(books, "classes", ["bad", "good"], 2000)
    write_methods(runs, books, target)
    write_run(runs, books, target, "full", 1, "scratch", skill=0.9, parameters=23_092_738)
    for rows, loss in ((16, 1.0), (64, 0.65), (256, 0.3)):
        for method in ("full", "lora", "prompt"):
            skill, parameters, lr, seconds, knobs = METHODS[method]
            for seed in (1, 2, 3):
                write_run(
                    *(runs, books, target, f"{method}-{rows}", seed),
                    skill=skill - loss * (1.3 if method == "full" else 1),
                    parameters=parameters,
                    lr=lr,
                    seconds=seconds * rows / 1600,
                    knobs=knobs,
                    train_rows=rows,
                    base_method=method,
                )
    topics = ["arts", "business", "science", "sport", "technology"]
    target = write_data(data_bin / "news", "classes", topics, 1000)
    write_methods(runs, data_bin / "news", target, (1,), ("full", "lora"), labels=topics)
    target = write_data(data_bin / "tags", "labels", topics, 600)
    some = {"kind": "labels", "labels": topics}
    write_methods(runs, data_bin / "tags", target, (1, 2), ("full", "lora", "ia3"), **some)
    target = write_data(data_bin / "likeness", "number", [], 600)
    some = {"kind": "number", "labels": []}
    write_methods(runs, data_bin / "likeness", target, (1, 2), ("full", "lora", "ia3"), **some)
    (runs / "books" / "pretrained" / "vera" / "seed1").mkdir(parents=True)
    return runs


if __name__ == "__main__":
    write_all(sys.argv[1])
