"""A contestant of predict_speed.py: Hugging Face's text-classification pipeline, on a clock.

Runs in an environment with transformers, without fairseq. The tokenizer is a fast one with the
pieces and scores of the sentencepiece model, and fairseq's ids.
"""

from __future__ import annotations

import base64
import json
import sys
import time

import torch
import transformers
from predict_meter import fingerprints, finish, milliseconds_alone, parser
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    PreTrainedTokenizerFast,
    RobertaForSequenceClassification,
    pipeline,
)

SPECIALS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def fast_tokenizer(path: str, max_tokens: int) -> PreTrainedTokenizerFast:
    """From {"pieces": [[piece, score], ...] in the order of fairseq's ids, "charsmap": base64}."""
    with open(path, encoding="utf-8") as file:
        given = json.load(file)
    pieces = [(piece, score) for piece, score in given["pieces"]]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    steps = [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    if given["charsmap"]:
        steps.insert(0, normalizers.Precompiled(base64.b64decode(given["charsmap"])))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=max_tokens, padding_side="right", **SPECIALS
    )


def main():
    flags = parser(__doc__)
    flags.add_argument("--base", required=True, help="folder of the model")
    flags.add_argument("--tokenizer", required=True, help="JSON with pieces and scores")
    flags.add_argument("--sorted", action="store_true", help="sort the texts by length first")
    args = flags.parse_args()
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    model = RobertaForSequenceClassification.from_pretrained(args.base, dtype=dtype)
    tokenizer = fast_tokenizer(args.tokenizer, args.max_tokens)
    classify = pipeline(
        "text-classification", model=model, tokenizer=tokenizer, device=args.device, top_k=None
    )
    texts = json.load(sys.stdin)

    def predict(texts):
        order = range(len(texts))
        if args.sorted:
            order = sorted(order, key=lambda i: len(texts[i]))
        rows = classify(
            [texts[i] for i in order],
            batch_size=args.batch_size,
            truncation=True,
            max_length=args.max_tokens,
        )
        found = [None] * len(texts)
        for i, row in zip(order, rows):
            found[i] = {entry["label"]: entry["score"] for entry in row}
        return found

    predict(texts[: args.warmup])
    loaded = time.time()
    start = time.perf_counter()
    rows = predict(texts)
    seconds = time.perf_counter() - start
    assert len(rows) == len(texts) and all(abs(sum(row.values()) - 1) < 0.02 for row in rows)
    ids = tokenizer(texts, truncation=True, max_length=args.max_tokens)["input_ids"]
    more = {"alone_ms": milliseconds_alone(predict, texts)}
    finish(args, loaded, seconds, fingerprints(ids), more, transformers=transformers.__version__)


if __name__ == "__main__":
    main()
