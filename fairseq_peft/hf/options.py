"""The options of a run with Hugging Face's ``Trainer``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Options:
    """What a run is; the defaults are those of scripts/finetune.sh."""

    data: Path
    base: Path
    save_dir: Path
    method: str = "full"
    label: str = ""
    base_name: str = ""
    seed: int = 1
    lr: float = 1e-4
    epochs: int = 5
    max_update: int = 0
    batch_size: int = 16
    warmup: float = 6
    precision: str = "fp32"
    subsets: tuple[str, ...] = ("valid", "test")
    metric: str = "accuracy"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    draw: str = "fairseq"
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    log_interval: int = 50
