"""How fast is prediction, from raw text to labels and probabilities?

    python benchmarks/predict_speed.py --out runs/benchmark

This package's ``Classifier``, Hugging Face's ``pipeline("text-classification")`` at several batch
sizes, and stock fairseq's ``roberta.predict`` one by one and in batches. Each is a process of its
own with the same texts, the same number of threads, a RoBERTa of the same sizes with random
weights, and the same sentencepiece model (its tokens are compared). They take turns; a ratio is
taken within one repeat. On the clock is everything from a list of strings to a list of labels and
probabilities; imports and loading are not, they stand in the table as start-up.

The texts are the test reviews of cls-books if FAIRSEQ_PEFT_SHARED names a folder that has
data/cls-books and models/roberta_small_fr, else the demo data of ``fairseq-peft make-demo-data``.

"Best of HF" is the fastest batch size of the pipeline in each repeat, whatever its precision;
``hf-*-sorted`` are texts that were sorted by length before the pipeline saw them, which it does not
do by itself: for comparison, and not among the best.

Files in the folder ``--out``: predict_speed.json and logs/.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import train_speed
from train_speed import (
    ROOT,
    Failed,
    InputError,
    choose,
    find_hf_python,
    processor,
    range_of,
    reason_of,
    size_flags,
    spread,
    table,
    whole,
    write_indexed,
)

HERE = Path(__file__).resolve().parent
MODEL, DICT = "sentencepiece.bpe.model", "dict.txt"
HF_BATCHES = (1, 8, 32)


@dataclass(frozen=True)
class Contestant:
    """One line of the table.

    Attributes:
        software: ours, hf (the pipeline), hf-sorted, or stock.
        method: of ours: full, lora, ...
    """

    name: str
    software: str
    precision: str
    batch_size: int
    method: str = "full"


def contestants() -> list[Contestant]:
    """All of them."""
    found = [
        Contestant("ours-fp32", "ours", "fp32", 64),
        Contestant("ours-bf16", "ours", "bf16", 64),
        Contestant("ours-lora-fp32", "ours", "fp32", 64, "lora"),
        Contestant("ours-lora-bf16", "ours", "bf16", 64, "lora"),
    ]
    for precision in ("fp32", "bf16"):
        for size in HF_BATCHES:
            found.append(Contestant(f"hf-{precision}-batch{size}", "hf", precision, size))
        found.append(Contestant(f"hf-{precision}-sorted", "hf-sorted", precision, 32))
    found.append(Contestant("stock-one-by-one", "stock", "fp32", 1))
    found.append(Contestant("stock-batch32", "stock", "fp32", 32))
    return found


# Texts, tokenizer, models


def shared_text() -> tuple[Path, Path] | None:
    """(texts, folder of the tokenizer) that FAIRSEQ_PEFT_SHARED names, if it does."""
    shared = os.environ.get("FAIRSEQ_PEFT_SHARED", "")
    texts = Path(shared) / "data" / "cls-books" / "test.review"
    tokenizer = Path(shared) / "models" / "roberta_small_fr"
    there = shared and texts.is_file() and (tokenizer / MODEL).is_file()
    return (texts, tokenizer) if there else None


def prepare_text(args, work: Path) -> tuple[list[str], str]:
    """The texts, what they are called; and the tokenizer's files in ``work``."""
    from fairseq_peft.text import demo, raw_text

    (work / "tokenizer").mkdir()
    found = shared_text()
    if found:
        path, tokenizer = found
        raw_text.copy_tokenizer(tokenizer / MODEL, tokenizer / DICT, work / "tokenizer")
        texts = path.read_bytes().decode().split("\n")[:-1]
        return texts[: args.texts], "cls-books, test"
    data = demo.make_demo_data(1, 3000, 100, 50, args.texts)
    raw_text.train_tokenizer(data.unlabelled, work / "tokenizer", 250, num_threads=1)
    demo.write_demo_data(data, work / "demo")
    texts = (work / "demo" / "test.review").read_text(encoding="utf-8").split("\n")[:-1]
    return texts, "demo data, test"


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def fields(data: bytes):
    """(number, value) of the fields of a protocol buffer's message."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(kind)
            if size is None:
                size, at = varint(data, at)
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def describe_tokenizer(model: Path, path: Path) -> None:
    """Write what Hugging Face's tokenizer is made of: pieces in the order of fairseq's ids."""
    from fairseq_peft.text import raw_text

    spm = raw_text.load_tokenizer(model)
    proto = dict(fields(spm.serialized_model_proto()))
    kind = dict(fields(proto[2])).get(3, 1)
    if kind != 1:
        raise InputError(f"{model} is no unigram model, which is what this benchmark compares.")
    ids = {piece: i for i, piece in enumerate(raw_text.pieces_of(spm), start=4)}
    scores = {piece: spm.get_score(spm.piece_to_id(piece)) for piece in ids}
    lowest = min(scores.values())
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", lowest - 10)]
    pieces += [(piece, scores[piece]) for piece in ids]
    charsmap = dict(fields(proto[3])).get(2, b"")
    given = {"pieces": pieces, "charsmap": base64.b64encode(charsmap).decode()}
    path.write_text(json.dumps(given), encoding="utf-8")


def prepare_models(args, chosen, work: Path, hf: str | None) -> dict:
    """Make what the contestants load; returns the sizes."""
    tokenizer = work / "tokenizer"
    sizes = {
        "layers": args.layers,
        "embed_dim": args.embed_dim,
        "ffn_dim": args.ffn_dim,
        "heads": args.heads,
        "max_positions": args.max_positions,
        "vocab": 5 + train_speed.count_lines(tokenizer / DICT),
        "classes": 2,
        "dropout": 0.1,
    }
    data = work / "data"
    for part in ("input0", "label"):
        (data / part).mkdir(parents=True)
    shutil.copy(tokenizer / DICT, data / "input0")
    shutil.copy(tokenizer / MODEL, data)
    (data / "label" / DICT).write_text("0 1\n1 1\n")
    for split in ("train", "valid"):
        write_indexed(data / "input0" / split, [[4, 5, 2], [5, 4, 2]])
        write_indexed(data / "label" / split, [[4, 2], [5, 2]])
    logs = args.out / "logs"
    for method in {one.method for one in chosen if one.software == "ours"}:
        words = [
            *(sys.executable, "-m", "fairseq_cli.train", str(data)),
            *("--user-dir", str(ROOT / "fairseq_peft"), "--arch", "roberta_small"),
            *("--peft", method, "--task", "sentence_classification", *size_flags(sizes)),
            *("--criterion", "sentence_classification", "--optimizer", "peft_adamw"),
            *("--lr", "1e-5", "--lr-scheduler", "fixed", "--batch-size", "2", "--max-epoch", "1"),
            *("--from-scratch", "--num-workers", "0", "--seed", "1", "--no-epoch-checkpoints"),
            *("--best-checkpoint-metric", "accuracy", "--maximize-best-checkpoint-metric"),
            *("--save-dir", str(work / method), "--cpu", "--log-format", "simple"),
        ]
        train_speed.start(words, logs / f"make-{method}.log", args.threads)
    if any(one.software.startswith("hf") for one in chosen):
        describe_tokenizer(tokenizer / MODEL, work / "tokenizer.json")
        words = [hf, str(HERE / "train_hf.py"), "--make-base", str(work / "hf")]
        words += ["--sizes", json.dumps(sizes)]
        train_speed.start(words, logs / "make-hf.log", args.threads)
    return sizes


# One process


def command(one: Contestant, args, sizes: dict, work: Path, hf: str | None) -> list[str]:
    """The words of a contestant's process."""
    common = [
        *("--precision", one.precision, "--batch-size", str(one.batch_size)),
        *("--max-tokens", str(sizes["max_positions"]), "--warmup", str(args.warmup)),
        *("--device", args.device),
    ]
    if one.software.startswith("hf"):
        return [
            *(hf, str(HERE / "predict_hf.py"), *common, "--base", str(work / "hf")),
            *("--tokenizer", str(work / "tokenizer.json")),
            *(["--sorted"] if one.software == "hf-sorted" else []),
        ]
    model = work / one.method / "adapter" if one.software == "ours" else work / "tokenizer"
    return [
        *(sys.executable, str(HERE / "predict_fairseq.py"), *common),
        *("--software", one.software, "--model", str(model), "--sizes", json.dumps(sizes)),
    ]


def measure(words: list[str], texts: list[str], log: Path, threads: int) -> dict:
    """Run a contestant to its end; its texts go to its stdin.

    Raises:
        Failed: with a sentence.
    """
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    env["HF_HUB_OFFLINE"] = "1"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [*words[:2], "--started", repr(time.time()), *words[2:]]
    done = subprocess.run(
        words, cwd=ROOT, env=env, input=json.dumps(texts), capture_output=True, text=True
    )
    log.write_text(f"{words}\n{done.stdout}\n{done.stderr}", encoding="utf-8")
    if done.returncode:
        reason = reason_of(done.stderr)
        raise Failed(f"failed with status {done.returncode}: {reason} (log: {log})")
    return json.loads(done.stdout.strip().splitlines()[-1])


# Summary


def speed(run: dict) -> float:
    return run["texts"] / run["seconds"]


def best_of(runs: dict, chosen, repeat: int, precisions=("fp32", "bf16")) -> float | None:
    """Texts/s of the pipeline's fastest batch size in one repeat."""
    found = [
        speed(runs[one.name][repeat])
        for one in chosen
        if one.software == "hf" and one.precision in precisions
        if repeat in runs.get(one.name, {})
    ]
    return max(found, default=None)


def ratios(mine: dict, others: dict) -> dict | None:
    """Spread of texts/s over those of ``others`` (repeat -> texts/s, or None)."""
    return spread([speed(run) / others[k] for k, run in sorted(mine.items()) if others.get(k)])


def summarise(chosen, runs: dict, repeats: range) -> list[dict]:
    """One entry a contestant; ``runs``: name -> repeat -> what its process reported."""
    found = []
    one_by_one = {k: speed(run) for k, run in runs.get("stock-one-by-one", {}).items()}
    for one in chosen:
        mine = runs.get(one.name, {})
        if not mine:
            continue
        each = [mine[repeat] for repeat in sorted(mine)]
        same = {k: best_of(runs, chosen, k, (one.precision,)) for k in repeats}
        every = {k: best_of(runs, chosen, k) for k in repeats}
        found.append(
            {
                "name": one.name,
                "software": one.software,
                "method": one.method,
                "precision": one.precision,
                "batch_size": one.batch_size,
                "versions": each[0]["versions"],
                "texts_per_s": spread([speed(run) for run in each]),
                "tokens_per_s": spread([run["tokens"] / run["seconds"] for run in each]),
                "ratio_to_hf_same_precision": ratios(mine, same),
                "ratio_to_hf_best": ratios(mine, every),
                "ratio_to_stock_one_by_one": ratios(mine, one_by_one),
                "startup_s": spread([run["startup_s"] for run in each]),
                "peak_rss_bytes": spread([run["peak_rss_bytes"] for run in each]),
                "runs": [
                    {"repeat": k, **{key: v for key, v in mine[k].items() if key != "rows"}}
                    for k in sorted(mine)
                ],
            }
        )
    return found


def other_rows(runs: dict) -> dict[str, float]:
    """Contestant -> share of the texts whose tokens are others than those of the first one."""
    first = next(iter(runs.values()), {})
    wanted = first[min(first)]["rows"] if first else []
    return {
        name: sum(a != b for a, b in zip(mine[min(mine)]["rows"], wanted)) / len(wanted)
        for name, mine in runs.items()
    }


def text_of(result: dict) -> str:
    """What is printed."""
    settings, machine = result["settings"], result["machine"]
    header = ["contestant", "batch", "texts/s", "tokens/s", "x HF same", "x HF best", "x stock"]
    header += ["start-up s", "peak MB"]
    lines = [
        [
            entry["name"],
            str(entry["batch_size"]),
            range_of(entry["texts_per_s"], 1),
            range_of(entry["tokens_per_s"], bare=True),
            range_of(entry["ratio_to_hf_same_precision"], 2),
            range_of(entry["ratio_to_hf_best"], 2),
            range_of(entry["ratio_to_stock_one_by_one"], 2, bare=True),
            range_of(entry["startup_s"], 1, bare=True),
            range_of(entry["peak_rss_bytes"], 0, 1e-6, bare=True),
        ]
        for entry in result["contestants"]
    ]
    blocks = [
        f"Repeats: {settings['repeats']}, threads: {settings['threads']}, device: "
        f"{settings['device']}. {result['data']['texts']} texts of {result['data']['source']}, "
        f"{result['data']['mean_length']:.0f} tokens in the mean, cut to "
        f"{settings['model']['max_positions']}. {machine['processor']}; load before the start "
        f"{machine['load_before']:.1f}.\n"
        "Median (lowest-highest) over the repeats, ratios of texts/s within one repeat: x HF same: "
        "to the pipeline's fastest batch size in the same precision; x HF best: in any; x stock: "
        "to stock fairseq, one by one.",
        table(header, lines),
    ]
    for name, share in result["other_tokens"].items():
        if share:
            blocks.append(f"{name}: {share:.1%} of the texts have other tokens than ours.")
    blocks += [f"Left out: {line}" for line in result["left_out"]]
    return "\n\n".join(blocks)


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
    add("--texts", type=int, default=500, help="texts on the clock (500)")
    add("--warmup", type=int, default=64, help="of them, predicted once before the clock (64)")
    add("--threads", type=int, default=os.cpu_count(), help="threads of each process (all)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="(cpu)")
    add("--only", default="", help="names or patterns with commas between, e.g. 'ours-*,hf-bf16-*'")
    add("--layers", type=int, default=4)
    add("--embed-dim", type=int, default=512)
    add("--ffn-dim", type=int, default=512)
    add("--heads", type=int, default=8)
    add("--max-positions", type=int, default=256)
    add("--list", action="store_true", help="name the contestants and end")
    args = parser.parse_args(argv)
    for name in ("repeats", "texts", "warmup", "threads"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: give 1 or more.")
    return args


def main(argv=None) -> int:
    args = read_args(argv)
    chosen = choose(contestants(), args.only)
    if args.list:
        print("\n".join(one.name for one in chosen))
        return 0
    left_out = []
    hf, reason = find_hf_python()
    if hf is None and any(one.software.startswith("hf") for one in chosen):
        left_out.append(f"hf-*: {reason}. bash scripts/test.sh parity makes it.")
        chosen = [one for one in chosen if not one.software.startswith("hf")]
        if not chosen:
            raise InputError(f"Nothing is left to measure. {left_out[0]}")
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    load, failures, runs = os.getloadavg()[0], {}, {}
    repeats = range(1, args.repeats + 1)
    with tempfile.TemporaryDirectory(prefix="predict-speed-") as folder:
        work = Path(folder)
        texts, source = prepare_text(args, work)
        try:
            sizes = prepare_models(args, chosen, work, hf)
        except Failed as error:
            raise InputError(f"A model to predict with could not be made: {error}") from None
        for repeat in repeats:
            for one in chosen:
                if one.name in failures:
                    continue
                words = command(one, args, sizes, work, hf)
                log = args.out / "logs" / f"predict-{one.name}-{repeat}.log"
                try:
                    run = measure(words, texts, log, args.threads)
                except (Failed, ValueError) as error:
                    failures[one.name] = f"{one.name} {error}"
                    print(f"predict_speed.py: {failures[one.name]}", file=sys.stderr, flush=True)
                    continue
                runs.setdefault(one.name, {})[repeat] = run
                line = f"repeat {repeat}: {one.name:<18} {speed(run):7,.1f} texts/s"
                print(line, file=sys.stderr, flush=True)
    first = next(iter(runs.values()), {1: {"tokens": 0}})
    result = {
        "schema": 1,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "settings": {
            **{key: getattr(args, key) for key in ("repeats", "texts", "warmup", "threads")},
            "device": args.device,
            "model": sizes,
        },
        "machine": {
            "platform": platform.platform(),
            "processor": processor(),
            "python": platform.python_version(),
            "load_before": load,
        },
        "data": {
            "source": source,
            "texts": len(texts),
            "mean_length": first[min(first)]["tokens"] / len(texts),
        },
        "contestants": summarise(chosen, runs, repeats),
        "other_tokens": other_rows(runs),
        "left_out": left_out,
        "failures": list(failures.values()),
    }
    with whole(args.out / "predict_speed.json") as path:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(text_of(result))
    for failure in failures.values():
        print(f"predict_speed.py: error: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    train_speed.install_excepthook("predict_speed.py")
    sys.exit(main())
