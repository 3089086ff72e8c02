"""How fast do models that write score labels, whose prompts they read once?

    python benchmarks/labels_speed.py --repeats 3

Each prompt is read once (``label_losses``), beside a whole pass for each label, with random weights
in one process, by turns; CPU seconds, and a ratio within each turn.
"""

from __future__ import annotations

import argparse
import random
import time
import types

import harness
import torch

import fairseq_peft.plugin  # noqa: F401
from fairseq_peft.criterions.answers import label_losses, predictions, token_losses
from fairseq_peft.data.answers import Layout
from fairseq_peft.models import hf_models

ARCHS = {"t5-small": hf_models.HFSeq2Seq, "gpt2": hf_models.HFCausalLM}
#: Token ids that stand for words; how many a label has.
WORDS, ANSWER = range(2, 1000), (1, 3)


def build(name: str, kind, precision: str):
    """A model of the config ``name``, which may be a file, with LoRA."""
    given = argparse.Namespace(hf_config=name, peft="lora", precision=precision)
    args = hf_models.HFConfig.from_namespace(given)
    args._name = kind.arch
    torch.manual_seed(1)
    return kind.build_model(args, types.SimpleNamespace(cfg=types.SimpleNamespace(seed=1))).eval()


def label_by_label(model, layout, prompts, labels):
    """As ``label_losses``, from a whole pass for each."""
    batches = [layout.batch([(prompt, ids) for prompt in prompts]) for ids in labels]
    return torch.stack([token_losses(*predictions(model, b), layout.pad) for b in batches], 1)


def compare(name: str, kind, num_labels: int, flags) -> list[str]:
    """A line of the table."""
    model, draw = build(name, kind, flags.precision), random.Random(1)
    layout = Layout(kind.arch == "hf_causal_lm", model.pad, eos=1, start=0)
    prompts, labels = (
        sorted((draw.choices(WORDS, k=draw.randint(*between)) for _ in range(rows)), key=len)
        for rows, between in ((flags.rows, flags.lengths), (num_labels, ANSWER))
    )
    found = {}

    @torch.no_grad()
    def measure(score, repeat):
        begin = time.process_time()
        found[score] = score(model, layout, prompts, labels)
        return time.process_time() - begin

    both = {score: score for score in (label_by_label, label_losses)}
    harness.take_turns(both, 1, measure)  # warms up
    whole, once = harness.take_turns(both, flags.repeats, measure)[0].values()
    differ = (found[label_by_label] - found[label_losses]).abs().max().item()
    cells = [harness.range_of(harness.spread(list(seen.values())), 2) for seen in (whole, once)]
    ratio = harness.range_of(harness.ratios(whole, once), 1)
    return [name, str(num_labels), *cells, ratio, f"{differ:.0e}"]


def main(argv=None, archs=ARCHS) -> int:
    flags = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = flags.add_argument
    add("--repeats", type=int, default=3, help="turns (3)")
    add("--rows", type=int, default=8, help="prompts in the batch (8)")
    add("--lengths", type=int, nargs=2, default=(100, 200), help="tokens of a prompt (100 200)")
    add("--labels", type=int, nargs="+", default=[2, 10], help="how many (2 10)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the model (fp32)")
    flags = flags.parse_args(argv)
    harness.check_positive(flags, "repeats", "rows")
    torch.set_num_threads(1)
    header = ["model", "labels", "a pass a label, s", "prompts once, s", "times", "differ by, nats"]
    lines = [compare(*one, number, flags) for one in archs.items() for number in flags.labels]
    print(harness.table(header, lines))
    return 0


if __name__ == "__main__":
    harness.run_main(main)
