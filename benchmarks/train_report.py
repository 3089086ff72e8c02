"""What train_speed.py prints and draws, and the floor: the time that its products alone take."""

from __future__ import annotations

import statistics
from pathlib import Path

from harness import machine_sentence, range_of, spread, table

RANK, BOTTLENECK, PROMPT = 8, 64, 20
PRODUCT = (2048, 512, 512)  # (m, k) x (k, n), the product whose speed the floor takes
PARTS = ("forward", "backward", "optimizer", "data", "other")


# The floor


def floors(sizes: dict, mean_length: float) -> list[dict]:
    """The multiplications of a method, as FLOP a real token, with the formula.

    W are the weights of the layers' linear maps; a product costs 2 FLOP a weight forward, as much
    again for the gradient of its input, and of its weight. Attention's own products, element-wise
    work, head and optimizer are left out. Backward goes through the whole first layer. ``every
    layer`` computes each layer at every token; ``head's share`` the last one only where the head
    reads it (keys and values at every token, the rest, which is not counted, at <s>).
    """
    c, f, layers = sizes["embed_dim"], sizes["ffn_dim"], sizes["layers"]
    longer = f"({mean_length:.0f} + {PROMPT}) / {mean_length:.0f}"
    found = []
    for scope in ("every layer", "head's share"):
        all_of_it = scope == "every layer"
        whole_layers = layers if all_of_it else layers - 1
        weights = f"{whole_layers} x (4 x {c}^2 + 2 x {c} x {f})"
        weights += "" if all_of_it else f" + 2 x {c}^2"
        maps = 2 * layers - (not all_of_it)  # LoRA on q and v
        blocks = 2 * whole_layers
        w = whole_layers * (4 * c * c + 2 * c * f) + (0 if all_of_it else 2 * c * c)
        entries = {
            "full": ("6 W", 6 * w),
            "head_only": ("2 W", 2 * w),
            "lora": (f"4 W + 6 x {maps} x 2 x {c} x {RANK}", 4 * w + 12 * maps * c * RANK),
            "adapter": (
                f"4 W + 6 x {blocks} x 2 x {c} x {BOTTLENECK}",
                4 * w + 12 * blocks * c * BOTTLENECK,
            ),
            "prompt": (f"4 W x {longer}", 4 * w * (mean_length + PROMPT) / mean_length),
        }
        for method, (formula, flop) in entries.items():
            found.append(
                {
                    "method": method,
                    "scope": scope,
                    "formula": f"{formula}, W = {weights}",
                    "flop_per_token": flop,
                }
            )
    return found


# Tables


def speed_table(result: dict) -> str:
    header = ["contestant", "batches", "real tokens/s", "padded/s", "x first", "x HF", "% of floor"]
    lines = [
        [
            entry["name"],
            entry["batches"],
            range_of(entry["real_tokens_per_s"]),
            range_of(entry["padded_tokens_per_s"], bare=True),
            range_of(entry["ratio_to_reference"], 2),
            range_of(entry["ratio_to_rival"], 2),
            range_of(entry["share_of_floor"], 1, 100, bare=True),
        ]
        for entry in result["contestants"]
    ]
    return table(header, lines, words=2)


def step_table(result: dict) -> str:
    header = ["contestant", "ms a step", *PARTS, "start-up s", "peak MB", "trainable"]
    lines = [
        [
            entry["name"],
            range_of(entry["step_ms"]),
            *(
                range_of(entry["parts_ms"] and entry["parts_ms"][part], 1, bare=True)
                for part in PARTS
            ),
            range_of(entry["startup_s"], 1, bare=True),
            range_of(entry["peak_device_bytes"] or entry["peak_rss_bytes"], 0, 1e-6, bare=True),
            f"{entry['trainable_parameters']:,}",
        ]
        for entry in result["contestants"]
    ]
    return table(header, lines)


def floor_table(result: dict) -> str:
    header = ["floor", "scope", "formula", "MFLOP a token", "fp32 tokens/s", "bf16 tokens/s"]
    products = result["products"]
    speeds = [statistics.median(p[key] for p in products) for key in ("fp32", "bf16")]
    lines = [
        [
            entry["method"],
            entry["scope"],
            entry["formula"],
            f"{entry['flop_per_token'] / 1e6:,.2f}",
            *(f"{1e9 * gflops / entry['flop_per_token']:,.0f}" for gflops in speeds),
        ]
        for entry in result["floors"]
    ]
    return table(header, lines, words=3)


def text_of(result: dict) -> str:
    """What is printed."""
    settings, data = result["settings"], result["data"]
    m, k, n = PRODUCT
    gflops = ", ".join(
        f"{key} {range_of(spread([p[key] for p in result['products']]))}"
        for key in ("fp32", "bf16")
    )
    blocks = [
        f"Repeats: {settings['repeats']}, steps: {settings['steps']} after {settings['warmup']}, "
        f"rows a step: {settings['batch_size']}, threads: {settings['threads']}, "
        f"device: {settings['device']}. "
        f"{data['rows']} {data['source']} rows of {data['mean_length']:.0f} tokens in the mean, "
        f"{data['longest']} at most. {machine_sentence(result)}\n"
        "Median (lowest-highest) over the repeats. Ratios are of real tokens/s within one repeat: "
        f"x first to {result['reference']}, x HF to hf-full-bf16 (full) or hf-lora-bf16 (others).",
        speed_table(result),
        step_table(result),
        "data: between two steps. other: what is left of a step. Peak MB: resident memory, or the "
        "device's on a GPU.",
        f"A {m} x {k} x {n} product here, GFLOP/s: {gflops}.",
        floor_table(result),
    ]
    if settings["device"] == "cuda":
        blocks.append("On a GPU this benchmark is untested.")
    blocks += [f"Left out: {line}" for line in result["left_out"]]
    return "\n\n".join(blocks)


def draw(result: dict, path: Path) -> None:
    """Real tokens/s beside the split of a step, one bar a contestant."""
    import matplotlib
    from matplotlib.figure import Figure

    from fairseq_peft.report.drawing import BLUE, GREEN, ORANGE, PURPLE, SETTINGS, SKY

    entries = result["contestants"][::-1]
    colours = {"stock": ORANGE, "ours": BLUE, "hf": GREEN}
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(11, 1.6 + 0.36 * len(entries)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        names = [f"{entry['name']} ({entry['batches']})" for entry in entries]
        speeds = [entry["real_tokens_per_s"] for entry in entries]
        middles = [values["median"] for values in speeds]
        errors = [[abs(v[key] - v["median"]) for v in speeds] for key in ("min", "max")]
        left.barh(
            names,
            middles,
            xerr=errors,
            color=[colours[entry["software"]] for entry in entries],
            ecolor="#444444",
        )
        left.set_xlabel("real tokens/s (bar: median, line: lowest to highest)")
        if all(entry["parts_ms"] for entry in entries):
            ends = [0.0] * len(entries)
            for part, colour in zip(PARTS, (BLUE, SKY, ORANGE, GREEN, PURPLE)):
                widths = [entry["parts_ms"][part]["median"] for entry in entries]
                right.barh(names, widths, left=ends, color=colour, label=part)
                ends = [end + width for end, width in zip(ends, widths)]
            right.legend(loc="best")
        else:
            right.barh(names, [entry["step_ms"]["median"] for entry in entries], color=SKY)
        right.set_xlabel("ms a step")
        figure.suptitle(
            f"Training, batch {result['settings']['batch_size']}, "
            f"threads {result['settings']['threads']}, {result['settings']['device']}"
        )
        figure.savefig(path)
