"""AdapterHub's half of test_hf_adapterhub.py and test_text_adapterhub.py: ``python adapters_hf.py
FOLDER KIND...``, without fairseq; prefixes on the kinds that are named.

FOLDER/base/KIND                 config.json and model.safetensors
FOLDER/batch-KIND.safetensors    what the model reads, by the names of its forward, and the answers
FOLDER/KIND-CASE.safetensors     what this script makes of it: ``before.NAME``, what trains,
                                 perturbed; ``logits``; ``grad.NAME`` of the cross entropy;
                                 ``after.NAME``, after NUM_STEPS steps of AdamW
"""

from __future__ import annotations

import sys
from pathlib import Path

import adapters
import torch
from adapters import DoubleSeqBnConfig, ParBnConfig, PrefixTuningConfig, SeqBnConfig
from reference import perturb, steps
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

R = {"reduction_factor": 4}
CASES = {
    "houlsby": DoubleSeqBnConfig(**R),
    "pfeiffer": SeqBnConfig(**R),
    "parallel": ParBnConfig(**R),
    "prefix": PrefixTuningConfig(flat=True, prefix_length=3, dropout=0.0),
}


def model_of(folder: Path, config):
    is_pair = AutoConfig.from_pretrained(folder).is_encoder_decoder
    auto = AutoModelForSeq2SeqLM if is_pair else AutoModelForCausalLM
    model = auto.from_pretrained(folder, attn_implementation="eager")
    adapters.init(model)
    model.add_adapter("a", config=config)
    model.train_adapter("a")
    return model.eval()


def record(model, batch) -> dict:
    perturb(model)
    answer = batch.pop("answer")
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    kept = {f"before.{name}": p.detach().clone() for name, p in trained.items()}
    kept.update(steps(trained, lambda: model(**batch).logits, answer))
    return {name: tensor.contiguous() for name, tensor in kept.items()}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    prefixed = sys.argv[2:]
    for base in sorted((folder / "base").iterdir()):
        for case, config in CASES.items():
            if case == "prefix" and base.name not in prefixed:
                continue  # Llama's and T5's are at other positions than ours
            torch.manual_seed(2)
            batch = load_file(folder / f"batch-{base.name}.safetensors")
            save_file(
                record(model_of(base, config), batch),
                folder / f"{base.name}-{case}.safetensors",
            )
