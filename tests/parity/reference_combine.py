"""Records of Hugging Face PEFT's ``add_weighted_adapter``: ``python reference_combine.py FOLDER``.

Runs in the environment of requirements-peft.txt, without fairseq. A record is one safetensors file:
    a.MODULE.A, .B, .scale      the adapter a; b and c alike
    found.MODULE.A, .B          what PEFT made of them
    weights, density, seed      how
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import merge_utils
from reference import base_model
from safetensors.torch import save_file

WEIGHTS = [0.7, -0.4, 1.3]
DENSITY = 0.6
#: case -> (combination_type, adapters); a and b are alike, c has other ranks and targets.
CASES = {
    "linear": ("linear", "ab"),
    "linear-negated": ("linear", "b"),
    "cat": ("cat", "abc"),
    "svd": ("svd", "abc"),
    "ties": ("ties", "ab"),
    "ties_svd": ("ties_svd", "abc"),
}
CONFIGS = {
    "a": LoraConfig(r=3, lora_alpha=6, target_modules=["query", "value", "word_embeddings"]),
    "b": LoraConfig(
        r=3, lora_alpha=5, use_rslora=True, target_modules=["query", "value", "word_embeddings"]
    ),
    "c": LoraConfig(r=2, lora_alpha=8, target_modules=["query", "intermediate.dense"]),
}


def factors(module, adapter):
    """A (r, in), B (out, r)."""
    if adapter in module.lora_embedding_A:
        return module.lora_embedding_A[adapter].data, module.lora_embedding_B[adapter].data
    return module.lora_A[adapter].weight.data, module.lora_B[adapter].weight.data


def has(module, adapter):
    tables = (getattr(module, "lora_A", ()), getattr(module, "lora_embedding_A", ()))
    return any(adapter in table for table in tables)


def record(folder: Path, case: str, how: str, adapters: str) -> None:
    torch.manual_seed(0)
    model = get_peft_model(base_model(), CONFIGS["a"], adapter_name="a")
    for name in "bc":
        model.add_adapter(name, CONFIGS[name])
    modules = {name: m for name, m in model.named_modules() if has(m, "a") or has(m, "c")}
    kept = {}
    for name, module in modules.items():
        for adapter in "abc":
            if has(module, adapter):
                for kind, tensor in zip("AB", factors(module, adapter)):
                    tensor.copy_(torch.randn(tensor.shape))
                    kept[f"{adapter}.{name}.{kind}"] = tensor.clone()
                kept[f"{adapter}.{name}.scale"] = torch.tensor(float(module.scaling[adapter]))
    weights = WEIGHTS[: len(adapters)] if len(adapters) > 1 else [-1.0]
    density = DENSITY if "ties" in how else None
    model.base_model.add_weighted_adapter(
        list(adapters), weights, "found", combination_type=how, density=density
    )
    for name, module in modules.items():
        if has(module, "found"):
            # PEFT keeps use_rslora of the first adapter, and with it a scale that is not 1.
            assert module.scaling["found"] == 1 or adapters[0] == "b"
            for kind, tensor in zip("AB", factors(module, "found")):
                kept[f"found.{name}.{kind}"] = tensor.clone()
    kept.update(weights=torch.tensor(weights), density=torch.tensor(density or 0.0))
    save_file({n: t.contiguous() for n, t in kept.items()}, folder / f"{case}.safetensors")


def record_random(folder: Path, how: str, seed: int = 5) -> None:
    """One matrix: PEFT draws from the global generator, module by module."""
    torch.manual_seed(1)
    tensors = [torch.randn(6, 7) for _ in WEIGHTS]
    torch.manual_seed(seed)
    found = getattr(merge_utils, how)(tensors, torch.tensor(WEIGHTS), DENSITY)
    kept = {f"{name}.matrix": tensor for name, tensor in zip("abc", tensors)}
    kept.update(found=found, weights=torch.tensor(WEIGHTS), density=torch.tensor(DENSITY))
    save_file({**kept, "seed": torch.tensor(seed)}, folder / f"{how}.safetensors")


if __name__ == "__main__":
    for case, (how, adapters) in CASES.items():
        record(Path(sys.argv[1]), case, how, adapters)
    for how in ("dare_linear", "dare_ties"):
        record_random(Path(sys.argv[1]), how)
