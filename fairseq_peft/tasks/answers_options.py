"""The flags of the tasks ``causal_lm`` and ``text_to_text``."""

from dataclasses import dataclass, field
from typing import List, Optional

from fairseq.dataclass import FairseqDataclass
from omegaconf import II, MISSING

from fairseq_peft.tasks.options import EVAL_TEST, METHOD_LABEL, TRAIN_EXAMPLES


@dataclass
class AnswersConfig(FairseqDataclass):
    data: str = field(
        default=MISSING,
        metadata={"help": "folder with train.jsonl, valid.jsonl, ... or .tsv"},
    )
    hf_tokenizer: str = field(
        default="",
        metadata={"help": "folder with tokenizer.json (the one of --hf-model)"},
    )
    labels: str = field(
        default="",
        metadata={
            "help": "the answers that there are, with commas between: validation says which of "
            "them is the likeliest, and has an accuracy ('')"
        },
    )
    max_prompt_tokens: int = field(
        default=512,
        metadata={
            "help": "longest prompt or input; with causal_lm, with the longest answer. Longer ones "
            "lose their end (512)"
        },
    )
    max_answer_tokens: int = field(
        default=128, metadata={"help": "longest answer, with its end (128)"}
    )
    eval_rouge: bool = field(
        default=False,
        metadata={"help": "write answers in validation, word by word, and score them by ROUGE"},
    )
    train_examples: int = field(
        default=0,
        metadata={"help": TRAIN_EXAMPLES["help"].replace("of each class", "of each of --labels")},
    )
    pack: bool = field(
        default=False,
        metadata={
            "help": "causal_lm: rows of a batch one behind the other in training, without padding, "
            "each as if it were alone; batches are drawn anew each epoch, not by length"
        },
    )
    eval_test: str = field(default="each", metadata=EVAL_TEST)
    method_label: str = field(default="", metadata=METHOD_LABEL)
    seed: int = II("common.seed")
    # Read for the length of the run, for the checks before training, and for run.json.
    cpu: bool = II("common.cpu")
    save_dir: str = II("checkpoint.save_dir")
    no_save: bool = II("checkpoint.no_save")
    save_interval_updates: int = II("checkpoint.save_interval_updates")
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")
    restore_file: str = II("checkpoint.restore_file")
    finetune_from_model: Optional[str] = II("checkpoint.finetune_from_model")
    reset_optimizer: bool = II("checkpoint.reset_optimizer")
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
    update_freq: List[int] = II("optimization.update_freq")
    skip_remainder_batch: bool = II("optimization.skip_remainder_batch")
