"""A contestant of text_speed.py: Hugging Face's ``Trainer`` with PEFT on models that write, timed.

Runs in an environment with transformers, peft and accelerate, without fairseq. With ``--make-base``
it writes the model that all start from, and ends.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import transformers
from meter import Meter, parser
from train_hf import TimedTrainer, Watch, arguments_of
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

AUTO = {"text_to_text": AutoModelForSeq2SeqLM, "causal_lm": AutoModelForCausalLM}
COLUMNS = {"text_to_text": ("input", "target"), "causal_lm": ("prompt", "answer")}


def make_base(folder, config: dict, task: str):
    """A model of ``config`` with random weights, as a folder."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(**config)
    AUTO[task].from_config(config).save_pretrained(folder)


def read_rows(data: Path, base: Path, task: str, eos: int) -> list[dict]:
    """The rows of train as token ids, without special tokens but the end, as this package reads
    them; -100 where a label is not to be predicted."""
    import tokenizers

    encode = tokenizers.Tokenizer.from_file(str(base / "tokenizer.json")).encode
    found = []
    for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines():
        prompt, answer = (json.loads(line)[name] for name in COLUMNS[task])
        prompt, answer = (encode(text, add_special_tokens=False).ids for text in (prompt, answer))
        answer = [*answer, eos]
        if task == "causal_lm":
            found.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
        else:
            found.append({"input_ids": prompt, "labels": answer})
    return found


class Collator:
    """Rows as a batch, padded at the right to the longest of them."""

    def __init__(self, pad: int):
        self.pad = pad

    def __call__(self, rows):
        tokens = self.padded([row["input_ids"] for row in rows], self.pad)
        return {
            "input_ids": tokens,
            "attention_mask": tokens.ne(self.pad).long(),
            "labels": self.padded([row["labels"] for row in rows], -100),
        }

    @staticmethod
    def padded(rows, value: int):
        out = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.long)
        for line, row in zip(out, rows):
            line[: len(row)] = torch.tensor(row)
        return out


def train(flags):
    import peft

    meter = Meter(flags)
    model = AUTO[flags.task].from_pretrained(flags.base)
    config = peft.LoraConfig(
        task_type="SEQ_2_SEQ_LM" if flags.task == "text_to_text" else "CAUSAL_LM",
        r=8,
        lora_alpha=16,
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    model = peft.get_peft_model(model, config)
    trainer = TimedTrainer(
        model=model,
        args=arguments_of(
            flags,
            seed=1,
            bf16=flags.precision == "bf16",
            train_sampling_strategy="group_by_length",
        ),
        train_dataset=read_rows(
            Path(flags.data), Path(flags.base), flags.task, model.config.eos_token_id
        ),
        data_collator=Collator(flags.pad),
        callbacks=[Watch(meter)],
        meter=meter,
    )
    trainer.train()
    meter.report(model, transformers=transformers.__version__, peft=peft.__version__)


def main():
    base = argparse.ArgumentParser(add_help=False)
    base.add_argument("--make-base", help="write a model here and end")
    base.add_argument("--config", type=json.loads)
    base.add_argument("--task", choices=tuple(AUTO), required=True)
    known, rest = base.parse_known_args()
    if known.make_base:
        return make_base(known.make_base, known.config, known.task)
    flags = parser(__doc__)
    for name in ("base", "data", "output", "task"):
        flags.add_argument(f"--{name}", required=True)
    flags.add_argument("--batch-size", type=int, required=True)
    flags.add_argument("--precision", choices=("fp32", "bf16"), required=True)
    return train(flags.parse_args([*rest, "--task", known.task]))


if __name__ == "__main__":
    main()
