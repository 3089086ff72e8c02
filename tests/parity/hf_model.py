"""Hugging Face's half of test_hf_model.py: ``python hf_model.py FOLDER``, without fairseq.

FOLDER/lm, FOLDER/classifier     what fairseq-peft to-hf wrote
FOLDER/asked.json                texts, and token ids (B, T) with padding
FOLDER/real, FOLDER/real.json    the same of a real model, if there is one
FOLDER/own                       what this script writes: a model of its own, for from-hf
FOLDER/*.safetensors, told.json  what this script writes: what the models compute and read
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from reference import base_model
from safetensors.torch import save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

KINDS = {"lm": AutoModelForMaskedLM, "classifier": AutoModelForSequenceClassification}


def computed(model, tokens) -> dict:
    with torch.no_grad():
        found = model.eval()(
            input_ids=tokens, attention_mask=tokens.ne(1).long(), output_hidden_states=True
        )
    return {"features": found.hidden_states[-1].contiguous(), "logits": found.logits.contiguous()}


def ids(folder, texts):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text)["input_ids"] for text in texts]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    asked = json.loads((folder / "asked.json").read_text())
    tokens = torch.tensor(asked["tokens"])
    for name, kind in KINDS.items():
        save_file(
            computed(kind.from_pretrained(folder / name), tokens), folder / f"{name}.safetensors"
        )
    classify = pipeline("text-classification", model=str(folder / "classifier"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "lm")
    told = {
        "ids": ids(folder / "lm", asked["texts"]),
        "pair": tokenizer("un mot", "deux mots")["input_ids"],
        "limit": tokenizer.model_max_length,
        "decoded": tokenizer.decode(tokenizer("deux mots")["input_ids"], skip_special_tokens=True),
        "labels": [row["label"] for row in classify(asked["texts"][:4])],
        "scores": [row["score"] for row in classify(asked["texts"][:4])],
    }
    if (folder / "real.json").is_file():
        real = json.loads((folder / "real.json").read_text())
        told["real"] = ids(folder / "real", real["texts"])
        model = AutoModelForMaskedLM.from_pretrained(folder / "real")
        save_file(computed(model, torch.tensor(real["tokens"])), folder / "real.safetensors")
    (folder / "told.json").write_text(json.dumps(told))

    own = base_model(seed=3)
    torch.manual_seed(3)
    with torch.no_grad():  # the only segment, which fairseq adds to the positions
        own.roberta.embeddings.token_type_embeddings.weight.normal_(std=0.3)
    own.save_pretrained(folder / "own")
    own_tokens = torch.tensor(asked["own"])
    save_file(computed(own, own_tokens), folder / "own.safetensors")
