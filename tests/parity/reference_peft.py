"""Records of Hugging Face PEFT: ``python reference_peft.py FOLDER`` writes one file a case.

Runs in the environment of requirements-peft.txt, without fairseq; see reference.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from reference import record

HEAD = ["classifier"]
LINEARS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


def lora(**given):
    values = {"r": 3, "lora_alpha": 6, "target_modules": ["query", "value"], **given}
    return LoraConfig(task_type="SEQ_CLS", modules_to_save=HEAD, **values)


def ia3(**given):
    return IA3Config(task_type="SEQ_CLS", modules_to_save=HEAD, **given)


def vera(**given):
    return VeraConfig(task_type="SEQ_CLS", r=3, modules_to_save=HEAD, **given)


def prefix(**given):
    return PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4, **given)


#: case -> config; the cases of STARTS keep the library's own start.
CASES = {
    "lora": lora(),
    "lora-all-linears": lora(target_modules=LINEARS),
    "lora-embeddings": lora(target_modules=["word_embeddings", "query"]),
    "lora-patterns": lora(rank_pattern={"value": 2}, alpha_pattern={"value": 5}),
    "lora-bias": lora(bias="lora_only"),
    "lora-bias-all": lora(bias="all"),
    "rslora": lora(use_rslora=True),
    "dora": lora(use_dora=True),
    "dora-all-linears": lora(use_dora=True, target_modules=LINEARS),
    "pissa": lora(init_lora_weights="pissa"),
    "pissa-all-linears": lora(init_lora_weights="pissa", target_modules=LINEARS),
    "olora": lora(init_lora_weights="olora"),
    "olora-all-linears": lora(init_lora_weights="olora", target_modules=LINEARS),
    # The update alone: ranks go, and the penalty is added, by calls outside of the model.
    "adalora": AdaLoraConfig(
        task_type="SEQ_CLS",
        init_r=3,
        target_r=2,
        lora_alpha=6,
        target_modules=["query", "value"],
        modules_to_save=HEAD,
        total_step=100,
    ),
    # The paper's three places. As a regular expression: the name output.dense alone is also the
    # end of attention.output.dense.
    "ia3": ia3(
        target_modules=r".*\.(key|value|layer\.\d+\.output\.dense)",
        feedforward_modules=r".*\.layer\.\d+\.output\.dense",
    ),
    "ia3-peft-default": ia3(),
    "vera": vera(target_modules=["query", "value"]),
    "vera-all-linears": vera(target_modules=LINEARS),
    # The inverse itself, not a series of five terms.
    "oft": OFTConfig(
        task_type="SEQ_CLS",
        oft_block_size=4,
        use_cayley_neumann=False,
        target_modules=["query", "value"],
        modules_to_save=HEAD,
    ),
    "prompt": PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4),
    "prefix": prefix(),
    "prefix-mlp": prefix(prefix_projection=True, encoder_hidden_size=6),
}
STARTS = {"pissa", "pissa-all-linears", "olora", "olora-all-linears"}


def wrap(config):
    return lambda model: get_peft_model(model, config)


if __name__ == "__main__":
    for case, config in CASES.items():
        record(Path(sys.argv[1]), case, wrap(config), start=case in STARTS)
