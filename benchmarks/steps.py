"""Training steps of this plugin's model without a data folder, for growth.py, memory.py, tricks.py.

``python steps.py JSON`` times one ``Setup`` in a process of its own and prints a line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

from harness import Failed, reason_of
from peak import peak_bytes, resident_bytes

VOCAB = 32000


@dataclass(frozen=True)
class Setup:
    """What is timed.

    Attributes:
        length: tokens of every row; 0 draws them as long as reviews, median 103.
        again: whether the inside of layers is computed again (--checkpoint-activations).
        off: names of ``OFF`` that are taken out.
    """

    method: str = "lora"
    precision: str = "bf16"
    arch: str = "roberta_small"
    length: int = 0
    batch: int = 8
    classes: int = 2
    rank: int = 8
    dropout: float = 0.1
    again: bool = False
    off: tuple = ()


def run(setup: Setup, steps: int, threads: int, warm_up: int = 3) -> dict:
    """``timed`` in a new process.

    Raises:
        Failed: with the line that says why.
    """
    given = {"steps": steps, "threads": threads, "warm_up": warm_up}
    words = json.dumps({**asdict(setup), **given})
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if "kept memory" in setup.off:
        # glibc reads it while the process starts; the plugin keeps its hands off.
        environment["MALLOC_ARENA_TEST"] = "8"
    return told_by([__file__, words], environment)


def told_by(program: list[str], environment: dict) -> dict:
    """The JSON of the last line that a Python program prints, in a new process.

    Raises:
        Failed: with the line that says why.
    """
    done = subprocess.run(
        [sys.executable, *program], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise Failed(f"failed with status {done.returncode}: {reason_of(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def build(setup: Setup):
    """The model, as a task would build it, with random weights."""
    import argparse
    from types import SimpleNamespace

    import fairseq_peft.plugin  # noqa: F401
    from fairseq_peft.checkpoints.finetuned import placeholder
    from fairseq_peft.models.roberta import RobertaPeftModel, architecture

    given = {"precision": setup.precision, "dropout": setup.dropout}
    given["attention_dropout"] = setup.dropout
    given["checkpoint_activations"] = setup.again
    if setup.method == "lora":
        given["lora_rank"] = setup.rank
    args = argparse.Namespace(_name="benchmark", **given)
    architecture(setup.arch, setup.method)(args)
    task = SimpleNamespace(source_dictionary=placeholder(VOCAB), cfg=SimpleNamespace(seed=1))
    model = RobertaPeftModel.build_model(args, task)
    model.register_classification_head("head", num_classes=setup.classes, seed=1)
    return model


def optimizer_of(model, off=()):
    from types import SimpleNamespace

    from fairseq_peft.optim.peft_adamw import PeftAdamW

    cfg = SimpleNamespace(
        lr=[1e-4], weight_decay=0.01, adamw_betas="(0.9, 0.999)", adamw_eps=1e-8, amp=False
    )
    optimizer = PeftAdamW(cfg, [p for p in model.parameters() if p.requires_grad])
    if "late scaling" in off:
        optimizer._waits = False
    return optimizer


def batches(setup: Setup, number: int) -> list:
    """Random words (B, T) with padding 1: by length, or drawn at random with that trick off."""
    import numpy as np
    import torch

    from fairseq_peft.data.buckets import bucket_batches

    rng = np.random.default_rng(0)
    if setup.length:
        lengths = np.full(number * setup.batch, setup.length)
    else:
        lengths = rng.lognormal(np.log(103), 0.8, number * setup.batch).astype(int).clip(8, 256)
    rows = [rng.integers(4, VOCAB - 1, length) for length in lengths]
    if "batches by length" in setup.off:
        chosen = np.arange(len(rows)).reshape(number, setup.batch)
    else:
        chosen = bucket_batches(lengths, max_sentences=setup.batch, rng=rng)
    found = []
    for indices in chosen:
        batch = np.ones((len(indices), max(lengths[i] for i in indices)), dtype=np.int64)
        for place, index in enumerate(indices):
            batch[place, : lengths[index]] = rows[index]
        found.append(torch.from_numpy(batch))
    return found


def step(model, optimizer, tokens, target) -> None:
    """One update as fairseq makes it: summed loss, gradients divided by the rows, clipped."""
    import torch.nn.functional as F

    optimizer.zero_grad()
    logits, _ = model(tokens, features_only=True, classification_head_name="head")
    F.cross_entropy(logits.float(), target, reduction="sum").backward()
    optimizer.multiply_grads(1 / len(tokens))
    optimizer.clip_grad_norm(1.0)
    optimizer.step()


def timed(setup: Setup, steps: int, warm_up: int = 3) -> dict:
    """Real tokens a second over ``steps`` steps after those that do not count, and peak memory.

    ``peak_bytes`` counts from before the model is built: weights, gradients, optimizer state,
    activations.
    """
    import torch

    import fairseq_peft.plugin  # noqa: F401

    torch.manual_seed(1)
    before = resident_bytes()
    with turned_off(setup.off):
        model = build(setup).train()
        optimizer = optimizer_of(model, setup.off)
        every = batches(setup, steps + warm_up)
        targets = [torch.randint(setup.classes, (len(batch),)) for batch in every]
        for tokens, target in zip(every[:warm_up], targets):
            step(model, optimizer, tokens, target)
        start = time.perf_counter()
        for tokens, target in zip(every[warm_up:], targets[warm_up:]):
            step(model, optimizer, tokens, target)
        seconds = time.perf_counter() - start
    real = sum(int((tokens != 1).sum()) for tokens in every[warm_up:])
    return {
        "tokens_per_s": real / seconds,
        "ms_per_step": 1000 * seconds / steps,
        "peak_bytes": peak_bytes() - before,
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


# Tricks that can be taken out. "kept memory", "batches by length" and "late scaling" are taken out
# above; here stand those that replace a function.


def _drawn_by_torch():
    """Masks of dropout from ``bernoulli_``."""
    import torch

    from fairseq_peft.layers import dropout

    def keep_mask(shape, p, dtype):
        return torch.empty(shape, dtype=dtype).bernoulli_(1 - p)

    return [(dropout, "keep_mask", keep_mask)]


def _attention_of_torch():
    import torch.nn.functional as F

    from fairseq_peft.layers import attention

    return [(attention, "attend", F.scaled_dot_product_attention)]


def _whole_last_layer():
    from fairseq_peft.models.encoder import PeftRobertaEncoder

    forward = PeftRobertaEncoder.forward

    def whole(self, *args, first_only=False, **kwargs):
        return forward(self, *args, **kwargs)

    return [(PeftRobertaEncoder, "forward", whole)]


def _adamw_of_loops():
    import torch

    adamw = torch.optim.AdamW
    return [(torch.optim, "AdamW", lambda *args, fused=None, **more: adamw(*args, **more))]


REPLACED = {
    "dropout by bytes": _drawn_by_torch,
    "own attention": _attention_of_torch,
    "last layer's shortcut": _whole_last_layer,
    "fused AdamW": _adamw_of_loops,
}
#: Everything that ``Setup.off`` may name.
OFF = ("kept memory", "batches by length", "late scaling", *REPLACED)


@contextlib.contextmanager
def turned_off(names):
    """Have the plugin run without the tricks ``names``."""
    unknown = set(names) - set(OFF)
    if unknown:
        raise ValueError(f"{sorted(unknown)[0]!r} is no trick. There are: {', '.join(OFF)}.")
    changes = [change for name in names if name in REPLACED for change in REPLACED[name]()]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def main():
    import torch

    given = json.loads(sys.argv[1])
    steps, threads, warm_up = (given.pop(name) for name in ("steps", "threads", "warm_up"))
    torch.set_num_threads(threads)
    print(json.dumps(timed(Setup(**{**given, "off": tuple(given["off"])}), steps, warm_up)))


if __name__ == "__main__":
    main()
