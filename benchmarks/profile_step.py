"""Where the time of a training step goes, by kind of operation: torch's profiler on one thread.

python benchmarks/profile_step.py --method lora --precision bf16
"""

from __future__ import annotations

import argparse

import steps

#: Kind -> torch's operators; what is in none is "everything else".
KINDS = {
    "products of linear maps": ("addmm", "mm", "addmv", "_fused_linear"),
    "products of attention": ("bmm", "baddbmm", "_scaled_dot_product"),
    "copies: types and layouts": ("copy_", "cat", "contiguous"),
    "softmax and its gradient": ("_softmax", "_log_softmax", "_softmax_backward_data"),
    "sums": ("add", "add_", "sum"),
    "layer norms, activations": ("native_layer_norm", "native_layer_norm_backward", "gelu",
                                 "gelu_backward", "tanh", "tanh_backward"),
    "dropout: bytes, masks, products": ("random_", "bernoulli_", "ge", "mul", "mul_"),
    "optimizer": ("_fused_adamw_", "linalg_vector_norm", "_foreach_norm"),
}  # fmt: skip


def kind_of(name: str) -> str:
    short = name.replace("aten::", "")
    return next((kind for kind, names in KINDS.items() if short in names), "everything else")


def main(argv=None):
    flags = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    flags.add_argument("--method", default="lora")
    flags.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    flags.add_argument("--batch-size", type=int, default=8)
    flags.add_argument("--length", type=int, default=128)
    flags.add_argument("--steps", type=int, default=10)
    flags = flags.parse_args(argv)

    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.set_num_threads(1)
    setup = steps.Setup(flags.method, flags.precision, length=flags.length, batch=flags.batch_size)
    model = steps.build(setup).train()
    optimizer = steps.optimizer_of(model)
    every = steps.batches(setup, flags.steps + 3)
    target = torch.zeros(flags.batch_size, dtype=torch.long)
    for tokens in every[:3]:
        steps.step(model, optimizer, tokens, target)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for tokens in every[3:]:
            steps.step(model, optimizer, tokens, target)
    spent = dict.fromkeys([*KINDS, "everything else"], 0.0)
    for event in found.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total
    whole = sum(spent.values())
    print("| kind | % |\n|---|---:|")
    for kind, time in sorted(spent.items(), key=lambda pair: -pair[1]):
        print(f"| {kind} | {100 * time / whole:.0f} |")


if __name__ == "__main__":
    main()
