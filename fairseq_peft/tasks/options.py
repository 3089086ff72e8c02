"""The flags of ``--task sentence_classification``, and those of fairseq that it reads."""

import argparse
from dataclasses import dataclass, field
from typing import Any, List, Optional

from fairseq.dataclass import FairseqDataclass
from omegaconf import II, MISSING

#: What is said of flags that several tasks have.
TRAIN_EXAMPLES = {
    "help": "train on so many rows alone, drawn by --seed, of each class as many (0: all)"
}
EVAL_TEST = {
    "help": "when the splits behind the first of --valid-subset are evaluated: at each validation "
    "(each), or once, when training has ended, with the best weights (best)"
}
METHOD_LABEL = {"help": "name of the method in reports (that of --peft)"}


@dataclass
class SentenceClassificationConfig(FairseqDataclass):
    # Shown by fairseq when a process loads a checkpoint of this task without having imported the
    # plugin.
    needs: str = field(
        default="the plugin: import fairseq_peft first or pass --user-dir fairseq_peft",
        metadata={"help": argparse.SUPPRESS},
    )
    data: str = field(
        default=MISSING,
        metadata={"help": "folder with input0/, optional input1/ and label/ (prepare_data.sh)"},
    )
    num_classes: int = field(
        default=-1,
        metadata={"help": "number of classes, as a check; it is read off label/dict.txt"},
    )
    no_init_token: bool = field(
        default=False, metadata={"help": "do not begin each example with <s>"}
    )
    from_scratch: bool = field(
        default=False, metadata={"help": "train from random weights, without a base checkpoint"}
    )
    train_examples: int = field(default=0, metadata=TRAIN_EXAMPLES)
    eval_test: str = field(default="each", metadata=EVAL_TEST)
    keep_features: int = field(
        default=500,
        metadata={
            "help": "MB of memory for features below the first tensor that trains, which are the "
            "same at each validation, and with --frozen-dropout off in each epoch (500; 0: none)"
        },
    )
    keep_features_on_disk: int = field(
        default=2000,
        metadata={
            "help": "MB of disk for such features that have no room in memory, in a file "
            "that is gone with the process (2000; 0: compute them anew)"
        },
    )
    verify_frozen: bool = field(
        default=False,
        metadata={"help": "compare all frozen tensors at each validation with the start (SHA-256)"},
    )
    full_checkpoints: bool = field(
        default=False,
        metadata={"help": "checkpoints hold the whole model, not only what trains"},
    )
    classification_head_name: str = field(
        default="sentence_classification_head", metadata={"help": "name of the classification head"}
    )
    method_label: str = field(default="", metadata=METHOD_LABEL)
    seed: int = II("common.seed")
    # Read for the checks before training and for run.json.
    cpu: bool = II("common.cpu")
    fp16: bool = II("common.fp16")
    bf16: bool = II("common.bf16")
    amp: bool = II("common.amp")
    store_ema: bool = II("ema.store_ema")
    save_dir: str = II("checkpoint.save_dir")
    no_save: bool = II("checkpoint.no_save")
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")
    save_interval_updates: int = II("checkpoint.save_interval_updates")
    restore_file: str = II("checkpoint.restore_file")
    finetune_from_model: Optional[str] = II("checkpoint.finetune_from_model")
    reset_optimizer: bool = II("checkpoint.reset_optimizer")
    reset_lr_scheduler: bool = II("checkpoint.reset_lr_scheduler")
    reset_meters: bool = II("checkpoint.reset_meters")
    reset_dataloader: bool = II("checkpoint.reset_dataloader")
    train_subset: str = II("dataset.train_subset")
    valid_subset: str = II("dataset.valid_subset")
    combine_valid_subsets: Optional[bool] = II("dataset.combine_valid_subsets")
    disable_validation: bool = II("dataset.disable_validation")
    validate_interval: int = II("dataset.validate_interval")
    validate_interval_updates: int = II("dataset.validate_interval_updates")
    validate_after_updates: int = II("dataset.validate_after_updates")
    max_valid_steps: Optional[int] = II("dataset.max_valid_steps")
    batch_size: Optional[int] = II("dataset.batch_size")
    max_tokens: Optional[int] = II("dataset.max_tokens")
    max_epoch: int = II("optimization.max_epoch")
    max_update: int = II("optimization.max_update")
    stop_time_hours: float = II("optimization.stop_time_hours")
    patience: int = II("checkpoint.patience")
    lr: List[float] = II("optimization.lr")
    optimizer_settings: Any = II("optimizer")
    update_freq: List[int] = II("optimization.update_freq")
    skip_remainder_batch: bool = II("optimization.skip_remainder_batch")
