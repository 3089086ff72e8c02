"""How fast do translation models train and search, beside stock fairseq?

    python benchmarks/translate_speed.py --out runs/benchmark

A stock `transformer` of fairseq's, trained in full, against ours in full and with a LoRA on all
linear maps, in fp32 and in bf16, on the same random weights and the same random words; then
fairseq's beam search with stock's model, with ours while the LoRA is beside the weights, and with
ours once it is merged. An update is fairseq's: its label-smoothed loss, the mean, the clipping, and
an optimizer; stock's is its adam, ours the plugin's peft_adamw. All are in one process and take
turns, on one thread unless --threads says more; a ratio is taken within one repeat. On the clock is
the process's CPU time, which other programs disturb less than the time of day. No text ends early,
so all search as many steps.

Files in the folder ``--out``: translate_speed.json.
"""

from __future__ import annotations

import argparse
import os
import time
import types
from dataclasses import dataclass

import harness
import torch
from harness import range_of, ratios, spread, table

BEAM, BETAS = 5, (0.9, 0.98)


@dataclass(frozen=True)
class Contestant:
    """One line of the table: what is done, by which model."""

    software: str
    precision: str
    what: str

    @property
    def name(self) -> str:
        return f"{self.software}-{self.precision}-{self.what}"


CONTESTANTS = [
    Contestant("stock-full", "fp32", "train"),
    *(
        Contestant(software, precision, "train")
        for precision in ("fp32", "bf16")
        for software in ("ours-full", "ours-lora")
    ),
    Contestant("stock-full", "fp32", "search"),
    *(
        Contestant(software, precision, "search")
        for precision in ("fp32", "bf16")
        for software in ("ours-lora", "ours-merged")
    ),
]


def build(software: str, args, words, precision: str = "fp32", same: bool = True, **more):
    """A model on random weights, with ``more`` flags if it is ours; the LoRA has moved from its
    start. The weights are the ``same`` for all, which takes one model more for a moment."""
    from fairseq.models import ARCH_CONFIG_REGISTRY
    from fairseq.models.transformer import TransformerModel

    from fairseq_peft.models.transformer import TransformerPeftConfig, TransformerPeftModel

    sizes = {"layers": args.layers, "embed_dim": args.embed_dim, "ffn_embed_dim": args.ffn_dim}
    sizes.update(attention_heads=args.heads)
    flags = {f"{half}_{n}": v for half in ("encoder", "decoder") for n, v in sizes.items()}
    flags.update(share_all_embeddings=True, dropout=0.1)
    cfg = types.SimpleNamespace(seed=1)
    task = types.SimpleNamespace(source_dictionary=words, target_dictionary=words, cfg=cfg)
    plain = argparse.Namespace(**flags)
    ARCH_CONFIG_REGISTRY["transformer"](plain)
    torch.manual_seed(1)
    stock = TransformerModel.build_model(plain, task) if same or software == "stock-full" else None
    if software == "stock-full":
        return stock
    method = "full" if software == "ours-full" else "lora"
    own = argparse.Namespace(**flags, **more, peft=method, precision=precision)
    if method == "lora":
        own.peft_targets = "all-linear"
    ARCH_CONFIG_REGISTRY["transformer_full"](own)
    model = TransformerPeftModel.build_model(TransformerPeftConfig.from_namespace(own), task)
    if stock is not None:
        model.load_state_dict(stock.state_dict())
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02, generator=generator)
    if software == "ours-merged":
        model.merge()
    return model


def dictionary(num_words: int):
    """One of so many words, fairseq's own among them."""
    from fairseq.data import Dictionary

    words = Dictionary()
    for number in range(num_words - len(words)):
        words.add_symbol(f"w{number}")
    return words


def rows(args, words):
    """A batch of sentences of one length, and of their translations, behind each other."""
    generator = torch.Generator().manual_seed(3)
    size = (args.batch_size, args.length)
    source, target = (torch.randint(4, len(words), size, generator=generator) for _ in range(2))
    before = torch.cat([torch.full((args.batch_size, 1), words.eos()), target[:, :-1]], 1)
    lengths = torch.full((args.batch_size,), args.length)
    net_input = {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": before}
    return {"net_input": net_input, "target": target, "ntokens": target.numel()}


def trainer(model, batch, words):
    """One update, as fairseq's trainer makes it."""
    from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
    from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig

    from fairseq_peft.models.peft_model import PeftModel
    from fairseq_peft.optim.peft_adamw import PeftAdamW, PeftAdamWConfig

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if isinstance(model, PeftModel):
        optimizer = PeftAdamW(PeftAdamWConfig(str(BETAS), lr=[1e-5], amp=False), trained)
    else:
        optimizer = FairseqAdam(FairseqAdamConfig(lr=[1e-5], adam_betas=str(BETAS)), trained)
    task = types.SimpleNamespace(target_dictionary=words)
    criterion = LabelSmoothedCrossEntropyCriterion(task, False, label_smoothing=0.1)
    model.train()

    def step():
        optimizer.zero_grad()
        loss, size, _ = criterion(model, batch)
        optimizer.backward(loss)
        optimizer.multiply_grads(1 / size)
        optimizer.clip_grad_norm(1.0)
        optimizer.step()

    return step


def searcher(model, batch, words, length):
    """fairseq's beam search, of ``length`` words for each sentence."""
    from fairseq.sequence_generator import SequenceGenerator

    model.eval()
    search = {"beam_size": BEAM, "max_len_b": length, "min_len": length}
    generator = SequenceGenerator([model], words, **search)

    def step():
        with torch.no_grad():
            generator.generate([model], batch)

    return step


def main() -> int:
    flags = harness.parser(__doc__, "*-search")
    flags.add_argument("--batch-size", type=int, default=32, help="sentences at once (32)")
    flags.add_argument("--length", type=int, default=20, help="words of each (20)")
    flags.add_argument("--words", type=int, default=8000, help="in the dictionary (8000)")
    flags.add_argument("--steps", type=int, default=2, help="updates or batches on the clock (2)")
    flags.set_defaults(embed_dim=256, ffn_dim=512, threads=1)
    args = flags.parse_args()
    harness.check_positive(args, "repeats", "threads", "batch_size", "length", "words", "steps")
    chosen = harness.choose(CONTESTANTS, args.only)
    if args.list:
        print("\n".join(one.name for one in chosen))
        return 0
    load = os.getloadavg()[0]
    torch.set_num_threads(args.threads)

    import fairseq_peft.plugin  # noqa: F401

    words = dictionary(args.words)
    batch, steps, trained = rows(args, words), {}, {}
    for one in chosen:
        model = build(one.software, args, words, one.precision)
        trained[one.name] = sum(t.numel() for t in model.parameters() if t.requires_grad)
        step = (
            trainer(model, batch, words)
            if one.what == "train"
            else searcher(model, batch, words, args.length)
        )
        step()  # what is done once
        steps[one.name] = step

    def measure(one, repeat):
        start = time.process_time()
        for _ in range(args.steps):
            steps[one.name]()
        seconds = time.process_time() - start
        return {"seconds": seconds, "words_per_s": args.steps * batch["target"].numel() / seconds}

    runs, _ = harness.take_turns(chosen, args.repeats, measure)
    speeds = {
        name: {repeat: run["words_per_s"] for repeat, run in found.items()}
        for name, found in runs.items()
    }
    first = {what: next((c.name for c in chosen if c.what == what), None) for what in WHAT}
    lines, entries = [], []
    for one in chosen:
        speed = spread(list(speeds[one.name].values()))
        ratio = ratios(speeds[one.name], speeds[first[one.what]])
        numbers = [range_of(speed), range_of(ratio, 2)]
        count = f"{trained[one.name]:,}" if one.what == "train" else "-"
        lines.append([one.name, *numbers, count])
        entries.append(
            {"name": one.name, "words_per_s": speed, "x_first": ratio, "runs": runs[one.name]}
        )
    sizes = {name: getattr(args, name) for name in harness.SIZES}
    names = ("repeats", "threads", "batch_size", "length", "words", "steps")
    result = {**harness.about(args, names, sizes, load), "contestants": entries}
    header = ["contestant", "words a CPU second", "x first of its kind", "trainable"]
    print(table(header, lines))
    print(f"\n{harness.machine_sentence(result)}")
    harness.write_json(args.out / "translate_speed.json", result)
    return 0


WHAT = ("train", "search")

if __name__ == "__main__":
    harness.run_main(main)
