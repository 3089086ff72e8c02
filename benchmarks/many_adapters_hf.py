"""A contestant of many_adapters.py: Hugging Face PEFT's mixed batches, on a clock.

Runs in an environment with transformers and peft, without fairseq. ``adapter_names`` tells PEFT the
adapter of each row; with one adapter it is left out, which is quicker. Rows are sorted by length
first, which PEFT leaves to its caller.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import peft
import torch
import transformers
from predict_hf import fast_tokenizer
from predict_meter import fingerprints, finish, memory, parser
from transformers import RobertaForSequenceClassification


def load(args):
    """The model with all adapters, and their names."""
    folders = sorted(Path(args.adapters).iterdir())[: args.count]
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    base = RobertaForSequenceClassification.from_pretrained(args.base, dtype=dtype)
    names = [f"a{folder.name}" for folder in folders]
    model = peft.PeftModel.from_pretrained(base, folders[0], adapter_name=names[0])
    for name, folder in zip(names[1:], folders[1:]):
        model.load_adapter(folder, adapter_name=name)
    return model.eval().to(args.device), names


def main():
    flags = parser(__doc__)
    flags.add_argument("--base", required=True, help="folder of the model")
    flags.add_argument("--adapters", required=True, help="folder of PEFT's folders")
    flags.add_argument("--tokenizer", required=True, help="JSON with pieces and scores")
    flags.add_argument("--count", type=int, required=True, help="adapters")
    args = flags.parse_args()
    given = json.load(sys.stdin)
    texts, numbers = given["texts"], given["adapters"]
    torch.zeros(64, 64) @ torch.zeros(64, 64)  # what the first product sets up is no adapter's
    before = memory()
    start = time.perf_counter()
    tokenizer = fast_tokenizer(args.tokenizer, args.max_tokens)
    model, names = load(args)
    load_s = time.perf_counter() - start
    after = [memory()]

    @torch.inference_mode()
    def predict(texts, numbers):
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
        found = [None] * len(texts)
        for first in range(0, len(order), args.batch_size):
            rows = order[first : first + args.batch_size]
            batch = tokenizer(
                [texts[i] for i in rows],
                truncation=True,
                max_length=args.max_tokens,
                padding=True,
                return_tensors="pt",
            ).to(args.device)
            own = {"adapter_names": [names[numbers[i]] for i in rows]} if len(names) > 1 else {}
            logits = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **own
            ).logits
            for i, scores in zip(rows, logits.float().softmax(-1).tolist()):
                found[i] = scores
        return found

    predict(texts[: args.warmup], numbers[: args.warmup])
    loaded = time.time()
    start, cpu = time.perf_counter(), time.process_time()
    scores = predict(texts, numbers)
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    ids = tokenizer(texts, truncation=True, max_length=args.max_tokens)["input_ids"]
    more = {
        "load_s": load_s,
        "cpu_s": cpu_s,
        "before_bytes": before,
        "after_bytes": after,
        "scores": scores,
    }
    versions = {"transformers": transformers.__version__, "peft": peft.__version__}
    finish(args, loaded, seconds, fingerprints(ids), more, **versions)


if __name__ == "__main__":
    main()
