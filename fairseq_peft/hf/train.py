"""Fine-tuning with Hugging Face's ``Trainer``, on the data of ``--task sentence_classification``
and with its record: run.json, metrics.jsonl, TensorBoard events.

The rows, their order and their batches are fairseq's, the loss, the optimizer, its schedule and the
clipping the Trainer's. Shape letters: B batch, T tokens.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch

from fairseq_peft.data import checks
from fairseq_peft.data.sentence_dataset import SentenceDataset
from fairseq_peft.errors import InputError
from fairseq_peft.hf import start
from fairseq_peft.hf.batches import Batches, loader
from fairseq_peft.hf.options import Options
from fairseq_peft.hf.train_record import Record
from fairseq_peft.runs import log as run_log
from fairseq_peft.runs import plan
from fairseq_peft.runs.choice import Choice
from fairseq_peft.scores import CLASSES, METRICS
from fairseq_peft.tasks import record


class Prepared(NamedTuple):
    """What a run trains with.

    Attributes:
        versions: of the libraries.
        labels: class names in the order of the outputs.
        datasets: split -> rows.
        choice: what chooses the best epoch.
        like: the ``start.twin`` of the model.
        model: the library's.
    """

    versions: dict
    labels: list[str]
    datasets: dict
    choice: Choice
    like: object
    model: torch.nn.Module


def prepare(options: Options) -> Prepared:
    """All that a run needs before its first update, checked, with nothing written.

    Raises:
        InputError: data and base do not belong together, or a flag cannot be meant.
    """
    versions = start.libraries(options.method)
    base = start.read(options.base)
    labels, datasets = load_data(options, base)
    choice = choose(options, labels)
    knobs = {"lora_rank", "lora_alpha", "lora_dropout"} if options.method == "lora" else set()
    like = start.twin(
        base,
        options.method,
        options.seed,
        len(labels),
        **{name: getattr(options, name) for name in knobs},
    )
    # A library that draws draws from the global generator.
    torch.manual_seed(options.seed)
    model = start.model(
        base, like, labels, options.dropout, options.attention_dropout, options.draw
    )
    return Prepared(versions, labels, datasets, choice, like, model)


def run(options: Options) -> None:
    """Train, and leave what a run of fairseq leaves but its checkpoints: ``checkpoint_best/`` is a
    folder of the library's.

    Raises:
        InputError: as ``prepare``, or training diverges.
    """
    found = prepare(options)
    trainer = make_trainer(options, found.model, found.datasets)
    for pattern in ("metrics.jsonl", "events.out.tfevents.*"):  # of a run that was interrupted
        for path in options.save_dir.glob(pattern):
            path.unlink()
    log = run_log.RunLog(str(options.save_dir), describe(options, found))
    trainer.record = Record(log, options, found.datasets, found.choice, found.labels)
    trainer.add_callback(trainer.record.callback(trainer))
    trainer.train()


def load_data(options: Options, base: start.Base):
    """Class names, and split -> data set, checked as fairseq-train checks them."""
    words = checks.load_dictionary(str(options.data / "input0" / "dict.txt"))
    words.add_symbol("<mask>")
    if checks.fingerprint(words) != checks.fingerprint(base.dictionary):
        raise InputError(
            f"{options.data}/input0/dict.txt is not the dictionary of {base.folder}. Prepare the "
            "data with the base's own (scripts/prepare_data.sh), or convert the right base."
        )
    labels = checks.class_names(checks.load_dictionary(str(options.data / "label" / "dict.txt")))
    longest = base.config["max_position_embeddings"] - 2
    datasets = {}
    for split in ("train", *options.subsets):
        texts, targets = checks.load_split(str(options.data), split, words, labels)
        datasets[split] = SentenceDataset(texts, targets, words, longest)
    return labels, datasets


def choose(options: Options, labels) -> Choice:
    """What chooses the best epoch, as in a run of fairseq.

    Raises:
        InputError: the metric is unknown.
    """
    choice = Choice(options.metric, options.subsets[0])
    known = (*METRICS[CLASSES], "loss")
    if options.metric not in known and choice.f1_class not in labels:
        raise InputError(
            f"--metric {options.metric} is unknown; expected {', '.join(known)} or f1_<class> "
            f"({', '.join('f1_' + name for name in labels)})."
        )
    return choice


def describe(options: Options, found: Prepared) -> dict:
    """The content of run.json (schema: docs/design.md)."""
    return {
        "schema": 1,
        "data": options.data.resolve().name,
        "init": "pretrained",
        "method": options.label or f"hf-{options.method}",
        "peft": options.method,
        "seed": options.seed,
        "arch": f"{found.like.args._name}, Hugging Face",
        "base": options.base_name or str(options.base),
        "method_config": found.like.setting.knobs(),
        "labels": list(found.labels),
        "chosen_by": found.choice.described(),
        "rows": {split: len(dataset) for split, dataset in found.datasets.items()},
        **start.count(found.model),
        "hyperparameters": {
            "lr": options.lr,
            "batch_size": options.batch_size,
            "max_tokens": None,
            "max_epoch": options.epochs,
            "update_freq": 1,
            "precision": options.precision,
            "dropout": options.dropout,
            "attention_dropout": options.attention_dropout,
            "frozen_dropout": "on",
        },
        "versions": {**record.versions(), **found.versions},
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "command": " ".join(sys.argv),
    }


def make_trainer(options: Options, model, datasets):
    """Hugging Face's ``Trainer`` with fairseq's batches; its ``record`` is still to be set.

    AdamW with a decay of 0.01 on matrices and none on vectors, and the linear schedule, are the
    Trainer's own, and the same as those of peft_adamw and polynomial_decay.
    """
    from transformers import Trainer, TrainingArguments

    num_updates = len(Batches(datasets["train"], options.batch_size)) * options.epochs
    if options.max_update:  # the schedule ends with the last update, as that of finetune
        num_updates = min(num_updates, options.max_update)
    arguments = TrainingArguments(
        output_dir=str(options.save_dir),
        num_train_epochs=options.epochs,
        max_steps=num_updates if options.max_update else -1,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.lr,
        lr_scheduler_type="linear",
        warmup_steps=plan.warmup_updates(num_updates, options.warmup),
        weight_decay=0.01,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=options.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        seed=options.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )

    class FairseqTrainer(Trainer):
        """Takes fairseq's batches, and hands what each step computes to ``record``."""

        def get_train_dataloader(self):
            return loader(self.train_dataset, options.batch_size, options.seed)

        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            self.record.step(inputs, outputs.logits, loss)
            return (loss, outputs) if return_outputs else loss

    return FairseqTrainer(model=model, args=arguments, train_dataset=datasets["train"])
