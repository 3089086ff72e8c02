"""How much memory, and processor seconds, does a translation model's step take?

    python benchmarks/translate_memory.py --out runs/benchmark

The models, batch and update of translate_speed.py with dictionaries of ``--dictionaries`` words:
stock fairseq in full, ours in full and with a LoRA, the same with the inside of layers computed
again ("again", --checkpoint-activations), and with fairseq's own way from features to the loss
("whole"), which has tensors of all tokens times all words. Each is a process of its own, one after
the other; the peak counts from before the model is built to the end of the second step: weights,
gradients, optimizer, activations. File in --out: translate_memory.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass

import harness
import steps
import translate_speed
from harness import range_of, spread, table
from peak import peak_bytes, resident_bytes


@dataclass(frozen=True)
class Contestant:
    """One line of the table; ``way`` is "", whole or again."""

    software: str
    precision: str
    way: str
    words: int

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.software, self.precision, self.way, str(self.words))))


WAYS = [
    ("stock-full", "fp32", ""),
    ("ours-full", "fp32", ""),
    *(
        ("ours-lora", precision, way)
        for precision in ("fp32", "bf16")
        for way in ("whole", "", "again")
    ),
]


def measured(one: dict) -> dict:
    """What a process finds that was started for it."""
    import torch
    from fairseq.criterions.label_smoothed_cross_entropy import (
        LabelSmoothedCrossEntropyCriterion as Criterion,
    )

    import fairseq_peft.plugin  # noqa: F401

    args = argparse.Namespace(**one["args"])
    torch.set_num_threads(args.threads)
    if one["way"] == "whole":
        Criterion.forward = Criterion.forward.__wrapped__
    words = translate_speed.dictionary(one["words"])
    batch = translate_speed.rows(args, words)
    before = resident_bytes()
    flags = {"checkpoint_activations": True} if one["way"] == "again" else {}
    model = translate_speed.build(one["software"], args, words, one["precision"], False, **flags)
    step = translate_speed.trainer(model, batch, words)
    step()
    start = time.process_time()
    step()
    seconds = time.process_time() - start
    peak = peak_bytes() - before
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {"peak_bytes": peak, "seconds": seconds, "weights_bytes": weights}


def run(one: Contestant, args) -> dict:
    """``measured`` in a new process.

    Raises:
        Failed: with the line that says why.
    """
    names = (*harness.SIZES, "batch_size", "length", "threads")
    given = {**vars(one), "args": {name: getattr(args, name) for name in names}}
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    return steps.told_by([__file__, "--one", json.dumps(given)], environment)


def main(argv=None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--one"]:
        print(json.dumps(measured(json.loads(argv[1]))))
        return 0
    flags = harness.parser(__doc__, "ours-*")
    flags.add_argument("--batch-size", type=int, default=32, help="sentences at once (32)")
    flags.add_argument("--length", type=int, default=32, help="words of each (32)")
    flags.add_argument(
        "--dictionaries", default="8000,64000,256000", help="words, with commas between"
    )
    flags.set_defaults(embed_dim=256, ffn_dim=512, threads=1)
    args = flags.parse_args(argv)
    harness.check_positive(args, "repeats", "threads", "batch_size", "length")
    dictionaries = [int(number) for number in args.dictionaries.split(",")]
    every = [Contestant(*way, words) for words in dictionaries for way in WAYS]
    chosen = harness.choose(every, args.only)
    if args.list:
        print("\n".join(one.name for one in chosen))
        return 0
    load = os.getloadavg()[0]
    runs, failures = harness.take_turns(
        chosen,
        args.repeats,
        lambda one, repeat: run(one, args),
        told=lambda name, result: f"{name} {result['peak_bytes'] / 1e6:,.0f} MB",
    )
    lines = []
    for name, found in runs.items():
        peaks = [turn["peak_bytes"] / 1e6 for turn in found.values()]
        seconds = [turn["seconds"] for turn in found.values()]
        (weights,) = {turn["weights_bytes"] for turn in found.values()}
        weights = f"{weights / 1e6:,.0f}"
        lines.append([name, weights, range_of(spread(peaks)), range_of(spread(seconds), 2)])
    sizes = {name: getattr(args, name) for name in harness.SIZES}
    names = ("repeats", "threads", "batch_size", "length", "dictionaries")
    result = {**harness.about(args, names, sizes, load), "runs": runs}
    print(table(["contestant", "weights MB", "peak MB", "CPU s a step"], lines))
    print(f"\n{harness.machine_sentence(result)}")
    harness.write_json(args.out / "translate_memory.json", result)
    return harness.tell_failures(list(failures.values()))


if __name__ == "__main__":
    harness.run_main(main)
