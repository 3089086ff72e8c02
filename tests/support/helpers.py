"""What the tests share besides fixtures: sizes, tolerances, data folders, the real command
lines."""

from __future__ import annotations

import io
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fairseq_peft"

#: The one tolerance table. A looser entry has its reason beside it.
TOLERANCE = {
    "fp32": 1e-5,
    "bf16": 0.05,  # 8 bits of mantissa through two layers, on logits of size 1
}

TINY = {
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_attention_heads": 4,
    "max_positions": 40,
}
#: The name of the head that the task gives a model.
HEAD = "sentence_classification_head"
TINY_FLAGS = [
    text for name, value in TINY.items() for text in ("--" + name.replace("_", "-"), str(value))
]


#: What sentencepiece puts before a piece that begins a word.
WORD_START = "\u2581"


def write_data(folder: Path, rows, labels, words=30, pairs=False, mark="") -> Path:
    """A binarised folder. ``rows``: split -> list of (list of word numbers, label) or (first,
    second, label). Word 7 is called ``mark`` and w7."""
    import torch
    from fairseq.data import Dictionary
    from fairseq.data.indexed_dataset import make_builder

    text_words, label_words = Dictionary(), Dictionary()
    for i in range(words):
        text_words.add_symbol(f"{mark}w{i}", n=words - i)
    for label in labels:
        label_words.add_symbol(label)
    parts = ("input0", "input1", "label") if pairs else ("input0", "label")
    for part in parts:
        (folder / part).mkdir(parents=True, exist_ok=True)
        (label_words if part == "label" else text_words).save(str(folder / part / "dict.txt"))
    for split, items in rows.items():
        for column, part in enumerate(parts):
            out = str(folder / part / split)
            builder = make_builder(out + ".bin", impl="mmap", vocab_size=1000)
            for item in items:
                value = item[column]
                if part == "label":
                    names = value if isinstance(value, list) else [value]
                    ids = [label_words.index(name) for name in names if name is not None]
                else:
                    ids = [text_words.index(f"{mark}w{i}") for i in value]
                builder.add_item(torch.IntTensor(ids + [2]))
            builder.finalize(out + ".idx")
    return folder


def word_tokenizer(words=30) -> bytes:
    """A sentencepiece model that reads "w7 w3" as the words 7 and 3 of ``write_data``, with
    ``WORD_START`` as their mark."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(f"w{i}" for i in range(words))]),
        model_writer=model,
        model_type="word",
        vocab_size=words + 3,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return model.getvalue()


def random_rows(seed=0, sizes=(("train", 67), ("valid", 21), ("test", 21)), longest=30):
    """Rows for ``write_data``: the words w0-w4 speak for "bad", w5-w9 for "good"."""
    rng = random.Random(seed)
    rows = {}
    for split, count in sizes:
        rows[split] = []
        for i in range(count):
            label = ("bad", "good")[i % 2]
            words = [rng.randrange(10, 30) for _ in range(rng.randint(2, longest))]
            words += [rng.randrange(5) + 5 * (label == "good") for _ in range(3)]
            rng.shuffle(words)
            rows[split].append((words, label))
    return rows


def fairseq_command(name, *args, cwd=None, env=None, timeout=300):
    """Run ``fairseq-<name>`` in a fresh process; returns the completed process with text output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.run(
        [sys.executable, "-m", f"fairseq_cli.{name}", *map(str, args)],
        cwd=cwd or ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def script(name, *args, **knobs):
    """Run ``scripts/<name>`` with knobs in the environment."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in knobs.items()}}
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / name), *map(str, args)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def train_flags(data, save_dir, arch="roberta_small_lora", **more):
    """The flags of one short fine-tuning run with the tiny sizes; ``more`` adds or replaces
    (None drops)."""
    flags = {
        "user_dir": PACKAGE,
        "arch": arch,
        "task": "sentence_classification",
        "criterion": "sentence_classification",
        "optimizer": "peft_adamw",
        "lr": 1e-2,
        "lr_scheduler": "fixed",
        "max_epoch": 1,
        "batch_size": 8,
        "seed": 1,
        "valid_subset": "valid,test",
        "best_checkpoint_metric": "accuracy",
        "maximize_best_checkpoint_metric": True,
        "no_epoch_checkpoints": True,
        "save_dir": save_dir,
        "num_workers": 0,
        "log_format": "simple",
        "cpu": True,
        "from_scratch": True,
        **{**TINY, **more},
    }
    words = [str(data)]
    for name, value in flags.items():
        if value is not None and value is not False:
            words.append("--" + name.replace("_", "-"))
            if value is not True:
                words.append(str(value))
    return words


def task_config(data, **more):
    """What the task sentence_classification is set up with; ``more`` adds or replaces."""
    values = {
        "data": str(data),
        "num_classes": -1,
        "no_init_token": False,
        "seed": 1,
        "train_subset": "train",
        "valid_subset": "valid,test",
        "classification_head_name": HEAD,
        "train_examples": 0,
        "amp": False,
        "store_ema": False,
        "verify_frozen": False,
        "keep_features": 0,
        "keep_features_on_disk": 0,
        "max_epoch": 2,
        "max_update": 0,
        "update_freq": [1],
        "skip_remainder_batch": False,
    }
    return SimpleNamespace(**{**values, **more})


def first_input(model, tokens):
    """What the first layer reads, (B, P + T, C), and the number of prefix tokens beside it."""
    import torch

    captured = {}
    first = model.encoder.sentence_encoder.layers[0]
    hook = first.register_forward_pre_hook(lambda m, args: captured.update(x=args[0]))
    with torch.no_grad():
        model(tokens, features_only=True)
    hook.remove()
    return captured["x"]


def opens_without_plugin(path) -> bool:
    """Whether torch's safe loader takes the file where nobody has allowed it anything, as in a
    process of stock fairseq."""
    import torch

    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        torch.load(path, weights_only=True)
    except pickle.UnpicklingError:
        return False
    finally:
        torch.serialization.add_safe_globals(allowed)
    return True
