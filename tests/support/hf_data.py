"""A tiny base, and binarised data with its dictionary: what both sides fine-tune on."""

from __future__ import annotations

import shutil
from argparse import Namespace

import hf_models
import torch
from helpers import random_rows, write_data

from fairseq_peft.text import raw_text


def write(folder):
    """FOLDER/base: model.pt, dict.txt, sentencepiece.bpe.model; FOLDER/demo: the data."""
    base, data = folder / "base", folder / "demo"
    dictionary = hf_models.write_tokenizer(base)
    as_published(hf_models.write_checkpoint(base / "model.pt", dictionary))
    write_data(data, random_rows(longest=50), hf_models.LABELS)  # 38 fit: some are cut
    shutil.copy(base / raw_text.DICT_NAME, data / "input0" / "dict.txt")
    shutil.copy(base / raw_text.MODEL_NAME, data / raw_text.MODEL_NAME)
    return base, data


def as_published(path):
    """Give a checkpoint what fairseq-train asks of one to start from."""
    state = torch.load(path, weights_only=True)
    flags = state.pop("cfg")["model"]
    known = {"task": "masked_lm", "criterion": "masked_lm", "arch": "roberta_base"}
    state["args"] = Namespace(**{**flags, **known})
    done = {"num_updates": 0, "lr_scheduler_state": {}, "optimizer_name": "FairseqAdam"}
    state["optimizer_history"] = [{"criterion_name": "MaskedLmLoss", **done}]
    torch.save(state, path)
