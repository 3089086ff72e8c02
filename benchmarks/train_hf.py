"""A contestant of train_speed.py: Hugging Face's ``Trainer``, with or without PEFT, on a clock.

Runs in an environment with transformers, peft and accelerate, without fairseq. With ``--make-base``
it writes the model that the others start from, and ends.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
import transformers
from meter import Meter, parser
from transformers import (
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices


def make_base(folder, sizes):
    """fairseq's RoBERTa of the same sizes and dropout rates, with random weights, as a folder."""
    torch.manual_seed(1)
    config = RobertaConfig(
        vocab_size=sizes["vocab"],
        num_hidden_layers=sizes["layers"],
        hidden_size=sizes["embed_dim"],
        intermediate_size=sizes["ffn_dim"],
        num_attention_heads=sizes["heads"],
        max_position_embeddings=sizes["max_positions"] + 2,  # fairseq's rows, padding's among them
        num_labels=sizes["classes"],
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        hidden_act="gelu",
        hidden_dropout_prob=sizes["dropout"],
        attention_probs_dropout_prob=sizes["dropout"],
        classifier_dropout=0.0,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    RobertaForSequenceClassification(config).save_pretrained(folder)


def read_rows(path):
    with np.load(path) as arrays:
        tokens, offsets, labels = (arrays[name] for name in ("tokens", "offsets", "labels"))
    return [
        {"input_ids": tokens[first:last].tolist(), "labels": int(label)}
        for first, last, label in zip(offsets[:-1], offsets[1:], labels)
    ]


class Collator:
    """Rows as a batch, padded at the right to the longest of them."""

    def __init__(self, pad):
        self.pad = pad

    def __call__(self, rows):
        longest = max(len(row["input_ids"]) for row in rows)
        tokens = torch.full((len(rows), longest), self.pad, dtype=torch.long)
        for line, row in zip(tokens, rows):
            line[: len(row["input_ids"])] = torch.tensor(row["input_ids"])
        return {
            "input_ids": tokens,
            "attention_mask": tokens.ne(self.pad).long(),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }


class TimedTrainer(Trainer):
    def __init__(self, *args, meter, **kwargs):
        super().__init__(*args, **kwargs)
        self.meter = meter
        meter.wrap(self, "compute_loss", "forward")
        meter.wrap(self.accelerator, "backward", "backward")
        meter.wrap(self, "_clip_grad_norm", "optimizer")
        meter.wrap(self.model, "zero_grad", "optimizer")

    def training_step(self, model, inputs, *args, **kwargs):
        self.meter.tokens(inputs["input_ids"])
        return super().training_step(model, inputs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset=None):
        """Trainer's own, but sorted in groups of 50 batches: what it does with 200 batches an epoch
        or more. The benchmark's data are fewer, for which it would sort less and pad more."""
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        return WideSampler(sampler.batch_size, lengths=sampler.lengths)


class WideSampler(LengthGroupedSampler):
    def __iter__(self):
        return iter(
            get_length_grouped_indices(
                self.lengths, self.batch_size, mega_batch_mult=50, generator=self.generator
            )
        )


class Watch(TrainerCallback):
    def __init__(self, meter):
        self.meter = meter

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        self.meter.wrap(optimizer, "step", "optimizer")

    def on_step_begin(self, args, state, control, **kwargs):
        self.meter.begin_step()

    def on_step_end(self, args, state, control, **kwargs):
        self.meter.end_step()


def arguments_of(flags, **more):
    """What the Trainer of a contestant is told."""
    return TrainingArguments(
        output_dir=flags.output,
        per_device_train_batch_size=flags.batch_size,
        max_steps=flags.warmup + flags.steps,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        use_cpu=flags.device == "cpu",
        dataloader_num_workers=0,
        dataloader_pin_memory=flags.device == "cuda",
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
        **more,
    )


def train(flags):
    meter = Meter(flags)
    model = RobertaForSequenceClassification.from_pretrained(flags.base)
    versions = {"transformers": transformers.__version__}
    if flags.method == "lora":
        import peft

        versions["peft"] = peft.__version__
        config = peft.LoraConfig(
            task_type="SEQ_CLS",
            r=flags.rank,
            lora_alpha=2 * flags.rank,
            lora_dropout=0.0,
            target_modules=["query", "value"],
        )
        model = peft.get_peft_model(model, config)
    more = {"train_sampling_strategy": "group_by_length"} if flags.by_length else {}
    arguments = arguments_of(
        flags, weight_decay=0.01, bf16=flags.precision == "bf16", seed=flags.seed, **more
    )
    trainer = TimedTrainer(
        model=model,
        args=arguments,
        train_dataset=read_rows(flags.rows),
        data_collator=Collator(flags.pad),
        callbacks=[Watch(meter)],
        meter=meter,
    )
    trainer.train()
    meter.report(model, **versions)


def main():
    base = argparse.ArgumentParser(add_help=False)
    base.add_argument("--make-base", help="write a model here and end")
    base.add_argument("--sizes", type=json.loads)
    known, rest = base.parse_known_args()
    if known.make_base:
        return make_base(known.make_base, known.sizes)
    flags = parser(__doc__)
    flags.add_argument("--base", required=True)
    flags.add_argument("--rows", required=True, help=".npz with tokens, offsets, labels")
    flags.add_argument("--output", required=True)
    flags.add_argument("--method", choices=("full", "lora"), required=True)
    flags.add_argument("--precision", choices=("fp32", "bf16"), required=True)
    flags.add_argument("--by-length", action="store_true")
    flags.add_argument("--batch-size", type=int, required=True)
    flags.add_argument("--rank", type=int, default=8)
    flags.add_argument("--seed", type=int, required=True)
    return train(flags.parse_args(rest))


if __name__ == "__main__":
    main()
