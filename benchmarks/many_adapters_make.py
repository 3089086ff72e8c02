"""What many_adapters.py's contestants load: a base, a whole model, and any number of LoRA adapters.

The adapters are one trained adapter, moved at random by a seed each: they differ as trained ones do
in everything that speed and memory depend on. Hugging Face's side gets the same tensors.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

#: PEFT mixes adapters of plain layers only, and RoBERTa's head is none: its two layers are named.
HEAD_LAYERS = ["classifier.dense", "classifier.out_proj"]


def moved(tensors: dict, seed: int) -> dict:
    """``tensors`` with noise of a size with which adapters tell apart what they are given."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in tensors.items()
    }


def write(trained: Path, base: Path, count: int, folder: Path, for_hf: bool) -> dict:
    """Write ``folder``/ours/0000, ... and for Hugging Face ``folder``/hf-base, ``folder``/hf/0000.

    Returns:
        Bytes of the tensors of the base, and of one adapter.
    """
    from fairseq_peft.adapters import folder as adapter_folder
    from fairseq_peft.checkpoints import finetuned
    from fairseq_peft.hf import config as hf_config
    from fairseq_peft.hf import peft_folder, weights

    found, model = finetuned.from_folder(trained, base)
    copies = {
        name: trained / name for name in (adapter_folder.DICTIONARY, adapter_folder.TOKENIZER)
    }
    sealed = ("json_sha256", "schema")  # the writer's own
    described = {key: value for key, value in found.description.items() if key not in sealed}
    for number in range(count):
        tensors = moved(found.tensors, number)
        adapter_folder.write(folder / "ours" / f"{number:04}", tensors, described, copies)
        if for_hf:
            own = replace(found, tensors=tensors)
            config, theirs = peft_folder.content(own, model)
            config.update(task_type=None, modules_to_save=HEAD_LAYERS)
            labels = found.description["labels"]
            peft_folder.write(folder / "hf" / f"{number:04}", config, theirs, labels)
    state = torch.load(base, map_location="cpu", weights_only=False)["model"]
    body = {name: t for name, t in state.items() if not name.startswith("classification_heads.")}
    if for_hf:
        theirs = hf_config.roberta(
            model.args, len(model.encoder.dictionary), found.description["labels"]
        )
        there = folder / "hf-base"
        there.mkdir()
        (there / "config.json").write_text(json.dumps(theirs), encoding="utf-8")
        converted = weights.convert_to_hf(body, head="none")
        save_file(converted, there / "model.safetensors", {"format": "pt"})
    return {"base": size_of(body), "adapter": size_of(found.tensors)}


def size_of(tensors: dict) -> int:
    """Bytes of tensors; one that is there twice counts once."""
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors.values()}.values())
