"""A contestant of many_adapters.py: one ``fairseq_peft.Classifier`` with many adapters on one base,
or one with a whole model for each of them, on a clock.

stdin: {"texts": [...], "adapters": [a number a text]}. Whole models are loaded up to ``--loaded``;
beyond that they take turns, as the weights do not matter for the speed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from predict_meter import fingerprints, finish, memory, parser

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_peft import Classifier  # noqa: E402


def on_one_base(args):
    """Returns predict(texts, numbers) -> predictions, a classifier, bytes after each load."""
    folders = sorted(Path(args.adapters).iterdir())[: args.count]
    options = {"precision": args.precision, "device": args.device}
    classifier = Classifier.load(args.base, folders[0], **options)
    for folder in folders[1:]:
        classifier.add(folder.name, folder)
    names = ["default", *(folder.name for folder in folders[1:])]

    def predict(texts, numbers):
        given = [names[number] for number in numbers]
        return classifier.predict(texts, adapter=given, batch_size=args.batch_size)

    return predict, classifier, [memory()]


def whole_models(args):
    """The same, with a model for each adapter: each predicts the rows that are its own."""
    found, after = [], []
    for _ in range(min(args.count, args.loaded)):
        options = {"precision": args.precision, "device": args.device}
        found.append(Classifier.load(None, args.base, **options))
        after.append(memory())

    def predict(texts, numbers):
        rows = {}
        for row, number in enumerate(numbers):
            rows.setdefault(number, []).append(row)
        answers = [None] * len(texts)
        for number, own in rows.items():
            classifier = found[number % len(found)]
            mine = classifier.predict([texts[i] for i in own], batch_size=args.batch_size)
            for row, answer in zip(own, mine):
                answers[row] = answer
        return answers

    return predict, found[0], after


def main():
    flags = parser(__doc__)
    flags.add_argument("--software", choices=("ours", "whole"), required=True)
    flags.add_argument("--base", required=True, help="checkpoint; for whole models a folder")
    flags.add_argument("--adapters", default="", help="folder of adapter folders")
    flags.add_argument("--count", type=int, required=True, help="adapters")
    flags.add_argument("--loaded", type=int, default=4, help="whole models that are loaded (4)")
    args = flags.parse_args()
    given = json.load(sys.stdin)
    texts, numbers = given["texts"], given["adapters"]
    torch.zeros(64, 64) @ torch.zeros(64, 64)  # what the first product sets up is no adapter's
    before = memory()
    start = time.perf_counter()
    load = {"ours": on_one_base, "whole": whole_models}[args.software]
    predict, classifier, after = load(args)
    load_s = time.perf_counter() - start
    predict(texts[: args.warmup], numbers[: args.warmup])
    loaded = time.time()
    start, cpu = time.perf_counter(), time.process_time()
    rows = predict(texts, numbers)
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    assert len(rows) == len(texts)
    reader = next(iter(classifier._readers.values()))
    items = reader.encoder.items([(text,) for text in texts], [reader.max_tokens] * len(texts))
    more = {
        "load_s": load_s,
        "cpu_s": cpu_s,
        "before_bytes": before,
        "after_bytes": after,
        "scores": [
            [row.probabilities[label] for label in sorted(row.probabilities)] for row in rows
        ],
    }
    finish(args, loaded, seconds, fingerprints(items), more)


if __name__ == "__main__":
    main()
