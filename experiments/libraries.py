"""T5 with PEFT's or AdapterHub's methods, as a plain loop: ``libraries.py PEFT|AdapterHub FILE``.

FILE, of t5_sentiment.py, names the model, the data and the runs; each leaves a result.json. The
library's own environment runs this, so it imports nothing that needs fairseq.
"""

from __future__ import annotations

import copy
import json
import random
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import T5ForConditionalGeneration

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from fairseq_peft.text import pairs  # noqa: E402
from fairseq_peft.text.folder_tokenizer import FolderTokenizer  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def add_method(by: str, model, method: str, size: int):
    """The model with the method, which alone trains."""
    if by == "PEFT":
        import peft

        if method == "lora":
            config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=size, lora_alpha=2 * size)
        else:
            config = peft.PromptTuningConfig(
                task_type="SEQ_2_SEQ_LM",
                num_virtual_tokens=size,
                num_transformer_submodules=1,
                prompt_tuning_init="SAMPLE_VOCAB",
            )
        return peft.get_peft_model(model, config)
    import adapters

    adapters.init(model)
    config = adapters.SeqBnConfig(reduction_factor=model.config.d_model / size)
    model.add_adapter("own", config=config)
    model.train_adapter("own")
    return model


class Data:
    """Rows of a split as token ids, and batches of them."""

    def __init__(self, given: dict, split: str, tokenizer, eos: int):
        self.labels = [[*tokenizer.encode(label), eos] for label in given["labels"]]
        self.rows = [
            (tokenizer.encode(text)[: given["max_tokens"]], given["labels"].index(label))
            for text, label in pairs.read(given["data"], split, ("input", "target"))
        ]
        self.size = given["batch_size"]

    def batches(self, seed: int | None = None):
        """Rows of about one length; in an order drawn with ``seed``."""
        draw = random.Random(seed)
        order = list(range(len(self.rows)))
        draw.shuffle(order)
        order.sort(key=lambda i: len(self.rows[i][0]))
        found = [order[i : i + self.size] for i in range(0, len(order), self.size)]
        draw.shuffle(found)
        for batch in found:
            yield self.tensors([self.rows[i] for i in batch])

    def tensors(self, rows):
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
        lengths = torch.tensor([len(ids) for ids, _ in rows])
        keep = (torch.arange(longest) < lengths[:, None]).long()
        classes = torch.tensor([y for _, y in rows])
        return {"input_ids": ids.to(DEVICE), "attention_mask": keep.to(DEVICE)}, classes

    def targets(self, classes):
        longest = max(map(len, self.labels))
        padded = [ids + [-100] * (longest - len(ids)) for ids in self.labels]
        return torch.tensor([padded[y] for y in classes], device=DEVICE)


def losses(model, inputs, target):
    """(B,) the summed loss of each answer, in nats, and the number of their tokens."""
    logits = model(**inputs, labels=target).logits
    each = F.cross_entropy(logits.transpose(1, 2), target, reduction="none")
    return each.sum(1), int(target.ne(-100).sum())


@torch.no_grad()
def accuracy(model, data: Data) -> float:
    """The share of rows whose label is the likeliest."""
    model.eval()
    right = 0
    for inputs, classes in data.batches(0):
        found = [
            losses(model, inputs, data.targets([label] * len(classes)))[0]
            for label in range(len(data.labels))
        ]
        right += int((torch.stack(found, 1).argmin(1).cpu() == classes).sum())
    return right / len(data.rows)


def train(by: str, given: dict, run: dict) -> dict:
    torch.manual_seed(run["seed"])
    model = T5ForConditionalGeneration.from_pretrained(given["base"])
    total = sum(p.numel() for p in model.parameters())
    eos = model.config.eos_token_id
    tokenizer = FolderTokenizer(given["base"])
    model = add_method(by, model, run["method"], run["size"]).to(DEVICE)
    parameters = [p for p in model.parameters() if p.requires_grad]
    trainable = sum(p.numel() for p in parameters)
    data = {split: Data(given, split, tokenizer, eos) for split in ("train", "valid", "test")}
    optimizer = torch.optim.AdamW(parameters, lr=run["lr"], weight_decay=0)
    started, best, kept = time.process_time(), -1.0, None
    for epoch in range(given["epochs"]):
        model.train()
        for inputs, classes in data["train"].batches(1000 * run["seed"] + epoch):
            summed, tokens = losses(model, inputs, data["train"].targets(classes))
            optimizer.zero_grad()
            (summed.sum() / tokens).backward()
            optimizer.step()
        found = accuracy(model, data["valid"])
        if found > best:
            best, kept = found, copy.deepcopy([p.data for p in parameters])
    seconds = time.process_time() - started
    for parameter, value in zip(parameters, kept):
        parameter.data.copy_(value)
    return {
        "seed": run["seed"],
        "trainable_parameters": trainable,
        "total_parameters": total + trainable,
        "train_cpu_seconds": seconds,
        "test": {"accuracy": accuracy(model, data["test"])},
    }


def main():
    by, path = sys.argv[1:]
    torch.set_num_threads(1)
    given = json.loads(Path(path).read_text(encoding="utf-8"))
    for run in given["runs"]:
        result = Path(run["folder"]) / "result.json"
        if result.is_file():
            continue
        found = train(by, given, run)
        result.parent.mkdir(parents=True, exist_ok=True)
        new = result.with_suffix(".new")
        new.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        new.replace(result)
        print(run["method"], run["size"], run["seed"], found["test"], flush=True)


if __name__ == "__main__":
    main()
