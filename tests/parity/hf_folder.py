"""Hugging Face's half of test_hf_folder.py: ``python hf_folder.py FOLDER``, without fairseq.

FOLDER/given/base       a converted base, config.json and model.safetensors
FOLDER/given/CASE       folders of PEFT that fairseq-peft export wrote, with labels.json
FOLDER/found/CASE       what this script writes of each: logits.safetensors
FOLDER/made/base        a base of its own: model.safetensors
FOLDER/made/CASE        folders of PEFT that this script has trained, with logits.safetensors
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from reference import NUM_STEPS, base_model, batch, perturb
from reference_peft import CASES, lora
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForSequenceClassification

#: Cases of reference_peft.py that can be imported, and more ways to say what is meant.
ALONE = ("adalora", "vera", "oft")
MADE = {name: config for name, config in CASES.items() if not name.startswith(ALONE)}
MADE["all-linear"] = lora(target_modules="all-linear", lora_dropout=0.1)
MADE["one-layer"] = lora(layers_to_transform=[1], target_modules=["query", "output.dense"])
MADE["expression"] = lora(target_modules=r".*\.(query|key)", exclude_modules=r".*\.0\..*key")
MADE["gaussian"] = lora(init_lora_weights="gaussian", target_modules=None)


def logits(model) -> torch.Tensor:
    tokens, _ = batch()
    with torch.no_grad():
        return model.eval()(input_ids=tokens, attention_mask=tokens.ne(1).long()).logits


def keep(folder: Path, scores: torch.Tensor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"logits": scores.contiguous()}, folder / "logits.safetensors")


def load_given(given: Path, found: Path) -> None:
    for folder in sorted(path for path in given.iterdir() if path.name != "base"):
        labels = json.loads((folder / "labels.json").read_text())
        # As docs/hugging-face.md has it.
        id2label = {int(i): name for i, name in labels["id2label"].items()}
        base = AutoModelForSequenceClassification.from_pretrained(given / "base", id2label=id2label)
        assert base.config.id2label == {0: "bad", 1: "good"}
        with warnings.catch_warnings():
            # PEFT only warns where tensors are missing; transformers warns PEFT of its future.
            warnings.simplefilter("error", UserWarning)
            model = PeftModel.from_pretrained(base, folder)
        keep(found / folder.name, logits(model))


def make(made: Path) -> None:
    (made / "base").mkdir(parents=True)
    base_model().save_pretrained(made / "base")
    tokens, labels = batch()
    for case, config in MADE.items():
        torch.manual_seed(2)
        model = get_peft_model(base_model(), config)
        perturb(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        for _ in range(NUM_STEPS):
            optimizer.zero_grad()
            scores = model(input_ids=tokens, attention_mask=tokens.ne(1).long()).logits
            nn.functional.cross_entropy(scores, labels).backward()
            optimizer.step()
        model.save_pretrained(made / case)
        keep(made / case, logits(model))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    load_given(folder / "given", folder / "found")
    make(folder / "made")
