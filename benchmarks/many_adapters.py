"""What does it cost to serve many adapters on one base?

    python benchmarks/many_adapters.py --out runs/benchmark

1, 10, 100, 1,000 LoRA adapters of rank 8 on one RoBERTa; each text names one of them at random.
Contestants: ``ours`` (``Classifier.predict(texts, adapter=[...])``), ``hf`` (Hugging Face PEFT's
mixed batches, ``adapter_names=[...]``, with rows sorted by length, at two batch sizes), and
``whole``, a fully fine-tuned model for each adapter, one after the other, each with its own texts.
Each is a process of its own with the same texts, tokens (compared), adapters and number of threads;
they take turns, and a ratio is taken within one repeat. That ours and Hugging Face's give the same
probabilities is checked on every row.

On the clock is everything from a list of strings to a list of probabilities; texts/CPU s counts the
time of the process's own threads, which other programs disturb less. Memory is what the
process holds after loading, less what it held when only its libraries were imported. Of whole
models ``--loaded`` are loaded at most, and the memory of more is told from the difference of one.

Sizes are those of roberta_small, weights are random (many_adapters_make.py). The texts are those of
predict_speed.py. Files in the folder ``--out``: many_adapters.json and logs/.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import harness
import many_adapters_make as make
import predict_shared as shared
from harness import HERE, Failed, InputError, range_of, ratios, spread, table
from predict_shared import speed, speeds

HF_BATCHES = (8, 32)
#: What issue 5 asks for: throughput with 100 adapters to that with one, and memory to the bytes
#: of base and adapters.
GOALS = {"throughput_of_one": 0.8, "memory": 1.2, "throughput_of_hf": 1.0}


@dataclass(frozen=True)
class Contestant:
    """One line of the table.

    Attributes:
        software: ours, hf or whole.
        count: adapters.
    """

    name: str
    software: str
    count: int
    batch_size: int


def contestants(counts: list[int]) -> list[Contestant]:
    """All of them."""
    found = [Contestant(f"ours-{count}", "ours", count, 64) for count in counts]
    for count in counts:
        for size in HF_BATCHES:
            found.append(Contestant(f"hf-{count}-batch{size}", "hf", count, size))
    return found + [Contestant(f"whole-{count}", "whole", count, 64) for count in counts]


def command(one: Contestant, args, sizes: dict, work: Path, hf: str | None) -> list[str]:
    """The words of a contestant's process."""
    common = [*shared.flags_of_process(one, args.precision, args, sizes)]
    common += ["--count", str(one.count)]
    if one.software == "hf":
        return [
            *(hf, str(HERE / "many_adapters_hf.py"), *common, "--base", str(work / "hf-base")),
            *("--adapters", str(work / "hf"), "--tokenizer", str(work / "tokenizer.json")),
        ]
    words = [sys.executable, str(HERE / "many_adapters_fairseq.py"), *common]
    words += ["--software", one.software, "--loaded", str(args.loaded)]
    if one.software == "whole":
        return [*words, "--base", str(work / "full" / "adapter")]
    return [*words, "--base", str(base_of(work)), "--adapters", str(work / "ours")]


def base_of(work: Path) -> Path:
    return work / "full" / "checkpoint_best.pt"


def prepare(args, chosen, work: Path, hf: str | None) -> tuple[dict, dict]:
    """Make what is loaded; returns the model's sizes, and bytes of base and adapter."""
    sizes = shared.prepare_models(args, {"full"}, work, None)
    base = base_of(work)
    log = args.out / "logs" / "make-lora.log"
    start_from = ["--finetune-from-model", str(base)]
    shared.train("lora", start_from, sizes, work, log, args.threads)
    count = max([one.count for one in chosen if one.software != "whole"], default=1)
    own = make.write(work / "lora" / "adapter", base, count, work, hf is not None)
    if hf:
        model = work / "tokenizer" / shared.MODEL
        shared.describe_tokenizer(model, work / "tokenizer.json")
    return sizes, own


def requests(texts: list[str], count: int) -> dict:
    """What a contestant reads: the texts, and the number of each one's adapter."""
    rng = random.Random(count)
    return {"texts": texts, "adapters": [rng.randrange(count) for _ in texts]}


# Summary


def held(one: Contestant, run: dict) -> float:
    """Bytes that a process holds for its models; told, where not all of them are loaded."""
    after = run["after_bytes"]
    first = after[0] - run["before_bytes"]
    if one.software != "whole" or one.count == 1 or len(after) == 1:
        return first
    return first + (one.count - 1) * (after[-1] - after[0]) / (len(after) - 1)


def fastest(runs: dict, chosen, software: str, count: int) -> dict:
    """Repeat -> texts/s of the fastest contestant of a kind."""
    found = {}
    for one in chosen:
        if (one.software, one.count) == (software, count):
            for repeat, value in speeds(runs.get(one.name, {})).items():
                found[repeat] = max(value, found.get(repeat, 0))
    return found


def summarise(chosen, runs: dict, sizes: dict) -> list[dict]:
    """One entry a contestant; ``runs``: name -> repeat -> what its process reported."""
    found = []
    for one in chosen:
        mine = runs.get(one.name, {})
        if not mine:
            continue
        each = [mine[repeat] for repeat in sorted(mine)]
        own_speeds = speeds(mine)
        own = sizes["base"] + one.count * sizes["adapter"]
        memory = [held(one, run) for run in each]
        found.append(
            {
                "name": one.name,
                "software": one.software,
                "adapters": one.count,
                "batch_size": one.batch_size,
                "versions": each[0]["versions"],
                "texts_per_s": spread([speed(run) for run in each]),
                "texts_per_cpu_s": spread([run["texts"] / run["cpu_s"] for run in each]),
                "ratio_to_one_adapter": ratios(
                    speeds(mine), fastest(runs, chosen, one.software, 1)
                ),
                "ratio_to_hf": ratios(own_speeds, fastest(runs, chosen, "hf", one.count)),
                "ratio_to_whole": ratios(own_speeds, fastest(runs, chosen, "whole", one.count)),
                "memory_bytes": spread(memory),
                "memory_told": one.software == "whole" and len(each[0]["after_bytes"]) < one.count,
                "memory_to_own_bytes": spread([value / own for value in memory]),
                "load_s": spread([run["load_s"] for run in each]),
                "peak_rss_bytes": spread([run["peak_rss_bytes"] for run in each]),
                "runs": harness.listed(mine, without=("rows", "scores")),
            }
        )
    return found


def goals(entries: list[dict]) -> dict:
    """Goal -> (asked, found), for those whose contestants ran."""
    ours = {entry["adapters"]: entry for entry in entries if entry["software"] == "ours"}
    found = {}
    if 100 in ours and ours[100]["ratio_to_one_adapter"]:
        found["throughput_of_one"] = ours[100]["ratio_to_one_adapter"]["median"]
    if ours:
        found["memory"] = max(entry["memory_to_own_bytes"]["median"] for entry in ours.values())
    to_hf = [entry["ratio_to_hf"]["median"] for entry in ours.values() if entry["ratio_to_hf"]]
    if to_hf:
        found["throughput_of_hf"] = min(to_hf)
    return {name: {"asked": GOALS[name], "found": value} for name, value in found.items()}


def other_scores(chosen, runs: dict) -> dict[str, float]:
    """Contestant of Hugging Face -> largest difference of a probability from ours."""
    ran = [one for one in chosen if one.name in runs]
    ours = {one.count: runs[one.name] for one in ran if one.software == "ours"}
    found = {}
    for one in ran:
        if one.software == "hf" and one.count in ours:
            mine, theirs = (r[min(r)]["scores"] for r in (ours[one.count], runs[one.name]))
            pairs = [(a, b) for x, y in zip(mine, theirs) for a, b in zip(x, y)]
            found[one.name] = max(abs(a - b) for a, b in pairs)
    return found


def text_of(result: dict) -> str:
    """What is printed."""
    settings, data = result["settings"], result["data"]
    header = [
        "contestant",
        "adapters",
        "texts/s",
        "texts/CPU s",
        "x one",
        "x HF",
        "x whole",
        "memory MB",
    ]
    header += ["x own bytes", "load s"]
    lines = [
        [
            entry["name"],
            f"{entry['adapters']:,}",
            range_of(entry["texts_per_s"], 1),
            range_of(entry["texts_per_cpu_s"], 1, bare=True),
            range_of(entry["ratio_to_one_adapter"], 2, bare=True),
            range_of(entry["ratio_to_hf"], 2, bare=True),
            range_of(entry["ratio_to_whole"], 2, bare=True),
            ("~" if entry["memory_told"] else "")
            + range_of(entry["memory_bytes"], 0, 1e-6, bare=True),
            range_of(entry["memory_to_own_bytes"], 2, bare=True),
            range_of(entry["load_s"], 1, bare=True),
        ]
        for entry in result["contestants"]
    ]
    own = result["own_bytes"]
    blocks = [
        f"Repeats: {settings['repeats']}, threads: {settings['threads']}, {settings['precision']}. "
        f"{data['texts']} texts of {data['source']}, {data['mean_length']:.0f} tokens in the mean, "
        f"each with an adapter at random. {harness.machine_sentence(result)}\n"
        f"The base's tensors are {own['base'] / 1e6:.1f} MB, an adapter's "
        f"{own['adapter'] / 1e6:.2f} MB. Median (lowest-highest) over the repeats; x one: texts/s "
        "to the same software with one adapter; x HF: to Hugging Face's faster batch size; x own "
        "bytes: memory to the bytes of the base and the adapters; ~: told from a few.",
        table(header, lines),
    ]
    for name, goal in result["goals"].items():
        blocks.append(f"Goal {name}: asked {goal['asked']}, found {goal['found']:.2f}.")
    blocks += shared.token_lines(result)
    for name, difference in result["other_scores"].items():
        blocks.append(f"{name}: probabilities differ from ours by {difference:.1e} at most.")
    blocks += [f"Left out: {line}" for line in result["left_out"]]
    return "\n\n".join(blocks)


# The run


def read_args(argv=None):
    flags = shared.parser(__doc__, "ours-*,hf-100-*", texts=300, warmup=32)
    add = flags.add_argument
    add("--adapters", default="1,10,100,1000", help="how many, with commas between")
    add("--loaded", type=int, default=4, help="whole models that are loaded at most (4)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="(fp32)")
    add("--device", choices=("cpu",), default="cpu", help="(cpu, the only one)")
    args = flags.parse_args(argv)
    harness.check_positive(args, "repeats", "texts", "warmup", "threads", "loaded")
    counts = args.adapters.split(",")
    if not all(count.isdigit() and int(count) for count in counts):
        raise InputError(f"--adapters {args.adapters!r}: give numbers such as 1,10,100.")
    args.adapters = sorted({int(count) for count in counts})
    return args


def main(argv=None) -> int:
    args = read_args(argv)
    chosen = harness.choose(contestants(args.adapters), args.only)
    if args.list:
        print("\n".join(one.name for one in chosen))
        return 0
    chosen, hf, left_out = harness.leave_out_hf(chosen)
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="many-adapters-") as folder:
        work = Path(folder)
        texts, source = shared.prepare_text(args, work)
        try:
            sizes, own = prepare(args, chosen, work, hf)
        except Failed as error:
            raise InputError(f"What is to be loaded could not be made: {error}") from None

        def measure(one, repeat):
            words = command(one, args, sizes, work, hf)
            log = args.out / "logs" / f"adapters-{one.name}-{repeat}.log"
            return harness.measured(words, log, args.threads, requests(texts, one.count))

        runs, failures = harness.take_turns(chosen, args.repeats, measure, told=shared.told)
    entries = summarise(chosen, runs, own)
    names = ("repeats", "texts", "warmup", "threads", "precision", "loaded", "device")
    result = {
        **harness.about(args, names, sizes, load),
        "data": shared.data_of(texts, source, runs),
        "own_bytes": own,
        "contestants": entries,
        "goals": goals(entries),
        "other_tokens": shared.other_rows(runs),
        "other_scores": other_scores(chosen, runs),
        "left_out": left_out,
        "failures": list(failures.values()),
    }
    harness.write_json(args.out / "many_adapters.json", result)
    print(text_of(result))
    return harness.tell_failures(result["failures"])


if __name__ == "__main__":
    harness.run_main(main)
