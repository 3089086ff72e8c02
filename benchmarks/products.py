"""How fast this machine multiplies matrices: GFLOP/s of a product in fp32 and bf16, as JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch


def measure(shape, dtype, device: str, seconds: float) -> float:
    """Median GFLOP/s of (m, k) x (k, n) over ``seconds``."""
    m, k, n = shape
    a = torch.randn(m, k, device=device).to(dtype)
    b = torch.randn(k, n, device=device).to(dtype)

    def once():
        start = time.perf_counter()
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    # Where bf16 is emulated a product takes a second, so few must do there.
    for _ in range(2):
        once()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        times.append(once())
    return 2 * m * k * n / statistics.median(times) / 1e9


def main():
    flags = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    flags.add_argument("--shape", type=int, nargs=3, required=True, help="m k n")
    flags.add_argument("--device", choices=("cpu", "cuda"), required=True)
    flags.add_argument("--seconds", type=float, default=1.0)
    flags = flags.parse_args()
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    found = {
        name: measure(flags.shape, dtype, flags.device, flags.seconds)
        for name, dtype in dtypes.items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
