"""What a run with Hugging Face's ``Trainer`` records, as ``tasks/record.py`` does for fairseq."""

from __future__ import annotations

import json
import logging
import shutil
import time

import numpy as np
import torch

from fairseq_peft import folders, scores
from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.errors import InputError
from fairseq_peft.hf.batches import loader
from fairseq_peft.runs import log as run_log
from fairseq_peft.runs import predictions
from fairseq_peft.runs.choice import Best, Choice
from fairseq_peft.text import bpe

logger = logging.getLogger(__name__)

#: Where the model of the best epoch is kept, in the run's folder.
BEST = "checkpoint_best"
#: What ``to_folder`` wrote beside the weights.
READERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    adapter_folder.DICTIONARY,
    *bpe.FILES,
)


class Counter:
    """Loss, and counts per class, over batches."""

    def __init__(self, num_classes: int):
        self.counts = torch.zeros(3, num_classes, dtype=torch.long)
        self.loss, self.num_tokens = 0.0, 0

    def add(self, inputs, logits, loss: float) -> None:
        """A batch with its logits (B, classes) and its mean loss in nats."""
        target, predicted = inputs["labels"].cpu(), logits.detach().argmax(-1).cpu()
        kinds = (target[predicted == target], target, predicted)  # as scores.KINDS
        self.counts += torch.stack([torch.bincount(k, minlength=logits.shape[1]) for k in kinds])
        self.loss += loss * len(target)
        self.num_tokens += int(inputs["attention_mask"].sum())

    def scores(self) -> dict:
        found = scores.from_counts(*self.counts.tolist())
        return {"loss": self.loss / found["num_examples"], **found}

    def f1(self, k: int) -> float:
        """F1 of class k."""
        return scores.f1(*self.counts[:, k].tolist())


class Record:
    """Times training and evaluation apart, writes a line an epoch, and keeps the best epoch's
    model, by ``choice``."""

    def __init__(self, log: run_log.RunLog, options, datasets: dict, choice: Choice, labels):
        self.log, self.options = log, options
        self.best, self.labels = Best(choice), labels
        self.subsets = {
            split: loader(datasets[split], options.batch_size) for split in options.subsets
        }

    def begin_epoch(self, num_classes: int) -> None:
        self.train = Counter(num_classes)
        self.started = time.perf_counter()

    def step(self, inputs, logits, loss) -> None:
        self.last_loss = loss.item()
        if not np.isfinite(self.last_loss):
            raise InputError("The loss is not finite: training has diverged. Give a lower --lr.")
        self.train.add(inputs, logits, self.last_loss)

    def end_epoch(self, trainer, epoch: int) -> None:
        num_updates = trainer.state.global_step
        seconds = time.perf_counter() - self.started
        self.predictions = predictions.Predictions(epoch)
        subsets = {name: self._score(trainer, name) for name in self.subsets}
        train = {**self.train.scores(), "num_tokens": self.train.num_tokens, "seconds": seconds}
        train["tokens_per_second"] = train["num_tokens"] / seconds
        self.log.epoch(
            {
                "epoch": epoch,
                "num_updates": num_updates,
                "lr": trainer.lr_scheduler.get_last_lr()[0],
                "peak_memory_bytes": run_log.peak_memory_bytes(),
                "train": train,
                "subsets": subsets,
            }
        )
        predictions.write(predictions.path_of(self.log.directory, num_updates), self.predictions)
        if self.best.offer(self.best.choice.value(subsets), num_updates):
            with folders.replaced(self.options.save_dir / BEST) as new:
                trainer.model.save_pretrained(new)
                for name in READERS:  # so that it reads text, and goes back with from-hf
                    if (self.options.base / name).is_file():
                        shutil.copyfile(self.options.base / name, new / name)

    @torch.no_grad()
    def _score(self, trainer, name) -> dict:
        batches, predicted = self.subsets[name], []
        began = time.perf_counter()
        trainer.model.eval()
        counter = Counter(len(self.train.counts[0]))
        for batch in batches:
            inputs = trainer._prepare_inputs(batch)
            with trainer.compute_loss_context_manager():
                outputs = trainer.model(**inputs)
            counter.add(inputs, outputs.logits, outputs.loss.item())
            predicted.append(outputs.logits.argmax(-1).cpu().numpy())
        in_order = np.empty(len(batches.dataset), dtype=np.int64)
        in_order[np.concatenate(list(batches.batch_sampler))] = np.concatenate(predicted)
        self.predictions.add(name, np.asarray(batches.dataset.targets), in_order)
        found = counter.scores()
        if self.best.choice.f1_class is not None:
            k = self.labels.index(self.best.choice.f1_class)
            found[self.best.choice.metric] = counter.f1(k)
        return {**found, "seconds": time.perf_counter() - began}

    def callback(self, trainer):
        """What calls all this, and prints a line every ``log_interval`` updates."""
        from transformers import TrainerCallback

        record, options = self, self.options

        class Calls(TrainerCallback):
            def on_epoch_begin(self, args, state, control, **kwargs):
                record.epoch = round(state.epoch or 0) + 1
                record.begin_epoch(trainer.model.config.num_labels)

            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step % options.log_interval == 0:
                    line = {
                        "epoch": record.epoch,
                        "num_updates": state.global_step,
                        "loss": round(record.last_loss, 6),
                    }
                    logger.info(json.dumps(line))
                if options.max_update and state.global_step >= options.max_update:
                    control.should_training_stop = True

            def on_epoch_end(self, args, state, control, **kwargs):
                record.end_epoch(trainer, record.epoch)

        return Calls()
