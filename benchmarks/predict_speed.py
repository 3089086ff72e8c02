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

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import harness
import predict_shared as shared
from harness import HERE, Failed, InputError, range_of, ratios, spread, table
from predict_shared import speed, speeds

HF_BATCHES = (1, 8, 32)
ALONE = ["contestant", "p50 ms", "x HF", "p99 ms", "CPU p50 ms", "x HF"]


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


def command(one: Contestant, args, sizes: dict, work: Path, hf: str | None) -> list[str]:
    """The words of a contestant's process."""
    common = shared.flags_of_process(one, one.precision, args, sizes)
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


# Summary


def best_of_hf(runs: dict, chosen, precisions=("fp32", "bf16")) -> dict[int, float]:
    """Repeat -> texts/s of the pipeline's fastest batch size."""
    found = {}
    for one in chosen:
        if one.software == "hf" and one.precision in precisions:
            for repeat, value in speeds(runs.get(one.name, {})).items():
                found[repeat] = max(value, found.get(repeat, 0))
    return found


def alone(runs: dict, kind: str) -> dict[int, float]:
    """Repeat -> milliseconds from one text to its label: ``kind`` of ``milliseconds_alone``."""
    return {repeat: run["alone_ms"][kind] for repeat, run in runs.items()}


def alone_of_hf(runs: dict, chosen, precision: str, kind: str) -> dict[int, float]:
    """The same of the pipeline; with one text at a time, all batch sizes are one: the fastest."""
    found = {}
    for one in chosen:
        if one.software == "hf" and one.precision == precision:
            for repeat, value in alone(runs.get(one.name, {}), kind).items():
                found[repeat] = min(value, found.get(repeat, value))
    return found


def alone_entry(runs: dict, chosen, one) -> dict:
    """What is told of one text at a time."""
    mine, entry = runs[one.name], {}
    for kind in ("p50", "p99", "cpu_p50"):
        entry[f"alone_{kind}_ms"] = spread(list(alone(mine, kind).values()))
        theirs = alone_of_hf(runs, chosen, one.precision, kind)
        entry[f"alone_{kind}_ratio_to_hf_same_precision"] = ratios(theirs, alone(mine, kind))
    return entry


def summarise(chosen, runs: dict) -> list[dict]:
    """One entry a contestant; ``runs``: name -> repeat -> what its process reported."""
    found = []
    one_by_one = speeds(runs.get("stock-one-by-one", {}))
    for one in chosen:
        mine = runs.get(one.name, {})
        if not mine:
            continue
        each = [mine[repeat] for repeat in sorted(mine)]
        same, every = best_of_hf(runs, chosen, (one.precision,)), best_of_hf(runs, chosen)
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
                "ratio_to_hf_same_precision": ratios(speeds(mine), same),
                "ratio_to_hf_best": ratios(speeds(mine), every),
                "ratio_to_stock_one_by_one": ratios(speeds(mine), one_by_one),
                **alone_entry(runs, chosen, one),
                "startup_s": spread([run["startup_s"] for run in each]),
                "peak_rss_bytes": spread([run["peak_rss_bytes"] for run in each]),
                "runs": harness.listed(mine, without=("rows",)),
            }
        )
    return found


def text_of(result: dict) -> str:
    """What is printed."""
    settings = result["settings"]
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
        f"{settings['model']['max_positions']}. {harness.machine_sentence(result)}\n"
        "Median (lowest-highest) over the repeats, ratios of texts/s within one repeat: x HF same: "
        "to the pipeline's fastest batch size in the same precision; x HF best: in any; x stock: "
        "to stock fairseq, one by one.",
        table(header, lines),
        "One text at a time, milliseconds to its label, and of CPU time, which other programs do "
        "not lengthen; x HF: how many times as fast as the pipeline in the same precision.",
        table(ALONE, alone_lines(result)),
    ]
    blocks += shared.token_lines(result)
    blocks += [f"Left out: {line}" for line in result["left_out"]]
    return "\n\n".join(blocks)


def alone_lines(result: dict) -> list[list[str]]:
    return [
        [
            entry["name"],
            range_of(entry["alone_p50_ms"], 1),
            range_of(entry["alone_p50_ratio_to_hf_same_precision"], 2),
            range_of(entry["alone_p99_ms"], 1),
            range_of(entry["alone_cpu_p50_ms"], 1),
            range_of(entry["alone_cpu_p50_ratio_to_hf_same_precision"], 2),
        ]
        for entry in result["contestants"]
    ]


# The run


def read_args(argv=None):
    flags = shared.parser(__doc__, "ours-*,hf-bf16-*", texts=500, warmup=64)
    flags.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(cpu)")
    args = flags.parse_args(argv)
    harness.check_positive(args, "repeats", "texts", "warmup", "threads")
    return args


def main(argv=None) -> int:
    args = read_args(argv)
    chosen = harness.choose(contestants(), args.only)
    if args.list:
        print("\n".join(one.name for one in chosen))
        return 0
    chosen, hf, left_out = harness.leave_out_hf(chosen)
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="predict-speed-") as folder:
        work = Path(folder)
        texts, source = shared.prepare_text(args, work)
        methods = {one.method for one in chosen if one.software == "ours"}
        try:
            sizes = shared.prepare_models(args, methods, work, hf)
        except Failed as error:
            raise InputError(f"A model to predict with could not be made: {error}") from None

        def measure(one, repeat):
            words = command(one, args, sizes, work, hf)
            log = args.out / "logs" / f"predict-{one.name}-{repeat}.log"
            return harness.measured(words, log, args.threads, texts)

        runs, failures = harness.take_turns(chosen, args.repeats, measure, told=shared.told)
    result = {
        **harness.about(args, ("repeats", "texts", "warmup", "threads", "device"), sizes, load),
        "data": shared.data_of(texts, source, runs),
        "contestants": summarise(chosen, runs),
        "other_tokens": shared.other_rows(runs),
        "left_out": left_out,
        "failures": list(failures.values()),
    }
    harness.write_json(args.out / "predict_speed.json", result)
    print(text_of(result))
    return harness.tell_failures(result["failures"])


if __name__ == "__main__":
    harness.run_main(main)
