"""Records of AdapterHub's `adapters`: ``python reference_adapters.py FOLDER``, one file a case.

Runs in the environment of requirements-adapters.txt, without fairseq; see reference.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import adapters
import torch
from adapters import (
    CompacterConfig,
    CompacterPlusPlusConfig,
    DoubleSeqBnConfig,
    ParBnConfig,
    PrefixTuningConfig,
    SeqBnConfig,
)
from adapters.composition import Fuse
from reference import record

#: 16 / 4: a bottleneck of 4, which Compacter's 4 blocks divide.
R = {"reduction_factor": 4}
CASES = {
    "houlsby": DoubleSeqBnConfig(**R),
    "houlsby-layer-norm": DoubleSeqBnConfig(ln_before=True, **R),
    "pfeiffer": SeqBnConfig(**R),
    "pfeiffer-both": SeqBnConfig(mh_adapter=True, **R),
    "parallel": ParBnConfig(**R),
    "parallel-both": ParBnConfig(mh_adapter=True, **R),
    "parallel-learned-scale": ParBnConfig(scaling="learned", **R),
    "compacter": CompacterConfig(**R),
    "compacter-ffn": CompacterConfig(mh_adapter=False, **R),
    # Not only one place fewer: it is a SeqBnConfig, so its adapters read what Pfeiffer's read.
    "compacter-plus-plus": CompacterPlusPlusConfig(**R),
    # Unlike PEFT's, these prefixes leave the text its positions.
    "prefix": PrefixTuningConfig(flat=True, prefix_length=4, dropout=0.0),
    "prefix-mlp": PrefixTuningConfig(prefix_length=4, bottleneck_size=6, dropout=0.0),
}
#: case -> config of the two adapters that are fused.
FUSIONS = {
    "fusion-pfeiffer": SeqBnConfig(**R),
    "fusion-houlsby": DoubleSeqBnConfig(**R),
}


def wrap(config):
    def add(model):
        adapters.init(model)
        model.add_adapter("a", config=config)
        model.train_adapter("a")  # freezes the body; a head of the model's own class trains
        return model

    return add


def fuse(config):
    def add(model):
        adapters.init(model)
        for name in "ab":
            model.add_adapter(name, config=config)
        model.add_adapter_fusion(["a", "b"])
        model.train_adapter_fusion(Fuse("a", "b"))
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if ".adapters." in name:  # as if each had been trained
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
            elif name.endswith(".key.bias") and ".adapter_fusion_layer." in name:
                # Softmax cancels it; ours has none.
                parameter.requires_grad_(False)
        return model

    return add


if __name__ == "__main__":
    for case, config in CASES.items():
        record(Path(sys.argv[1]), case, wrap(config))
    for case, config in FUSIONS.items():
        record(Path(sys.argv[1]), case, fuse(config))
