"""Hugging Face's half of test_parity_text.py: ``python text_folder.py FOLDER``, without fairseq.

FOLDER/base/KIND                 a converted base, config.json and model.safetensors
FOLDER/given/KIND/CASE           folders of PEFT that fairseq-peft export wrote
FOLDER/found/KIND/CASE.safetensors  what this script makes of each: see ``record``
FOLDER/made/KIND/CASE            folders of PEFT that this script has trained
FOLDER/made/KIND/CASE.safetensors   the logits of each
"""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
)
from reference import perturb, steps
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM

LINEARS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def lora(**given):
    values = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], **given}
    return LoraConfig(task_type="SEQ_2_SEQ_LM", **values)


#: Further ways to say what is meant, beside those that export writes.
MADE = {
    "lora": lora(),
    "lora-all-linear": lora(target_modules="all-linear", use_rslora=True),
    "lora-expression": lora(target_modules=r"model\.decoder\..*encoder_attn\.[qk]_proj"),
    "lora-one-layer": lora(layers_to_transform=[1], target_modules=LINEARS),
    "lora-patterns": lora(rank_pattern={"v_proj": 2}, alpha_pattern={"v_proj": 5}),
    "lora-bias": lora(bias="lora_only"),
    "dora": lora(use_dora=True),
    "pissa": lora(init_lora_weights="pissa"),
    "ia3": IA3Config(
        task_type="SEQ_2_SEQ_LM",
        target_modules=["k_proj", "v_proj", "fc2"],
        feedforward_modules=["fc2"],
    ),
    "prompt": PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3),
}


def plain_name(name: str) -> str:
    """As the files of PEFT have it."""
    if name.startswith("prompt_encoder."):
        return "prompt_embeddings"
    name = re.sub(r"\.lora_magnitude_vector\.default\.weight$", ".lora_magnitude_vector", name)
    return re.sub(r"\.default\b", "", name)


def logits(model, batch) -> torch.Tensor:
    """(B, T, V)."""
    return model(
        input_ids=batch["source"],
        attention_mask=batch["source"].ne(1).long(),
        decoder_input_ids=batch["target"],
    ).logits


def record(model, batch) -> dict:
    """``logits``, ``grad.NAME`` of the cross entropy, and ``after.NAME``, what trains after
    NUM_STEPS steps of AdamW."""
    trained = {plain_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    kept = steps(trained, lambda: logits(model, batch), batch["answer"])
    return {name: tensor.contiguous() for name, tensor in kept.items()}


def load_given(folder: Path, kind: str, batch) -> None:
    (folder / "found" / kind).mkdir(parents=True)
    for given in sorted((folder / "given" / kind).iterdir()):
        base = AutoModelForSeq2SeqLM.from_pretrained(folder / "base" / kind)
        with warnings.catch_warnings():
            # PEFT only warns where tensors are missing.
            warnings.simplefilter("error", UserWarning)
            # PEFT loads a prompt for inference alone; its vectors are trained all the same.
            is_prompt = PeftConfig.from_pretrained(given).is_prompt_learning
            model = PeftModel.from_pretrained(base, given, is_trainable=not is_prompt)
        if is_prompt:
            model.prompt_encoder.requires_grad_(True)
        found = record(model.eval(), batch)
        save_file(found, folder / "found" / kind / f"{given.name}.safetensors")


def make(folder: Path, kind: str, batch) -> None:
    for case, config in MADE.items():
        torch.manual_seed(2)
        base = AutoModelForSeq2SeqLM.from_pretrained(folder / "base" / kind)
        model = get_peft_model(base, config).eval()
        perturb(model)
        record(model, batch)  # which trains it
        model.save_pretrained(folder / "made" / kind / case)
        with torch.no_grad():
            found = {"logits": logits(model, batch).contiguous()}
        save_file(found, folder / "made" / kind / f"{case}.safetensors")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    batch = load_file(folder / "batch.safetensors")
    for kind in sorted(path.name for path in (folder / "base").iterdir()):
        load_given(folder, kind, batch)
        make(folder, kind, batch)
