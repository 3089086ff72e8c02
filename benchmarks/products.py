"""How fast this machine multiplies matrices: GFLOP/s of a product in fp32 and bf16, as JSON; with
``--copy-mb``, the GB/s of a copy, what it reads and what it writes, and the device's name."""

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
    return 2 * m * k * n / median_seconds(lambda: torch.mm(a, b), device, seconds) / 1e9


def measure_copy(megabytes: int, device: str, seconds: float) -> float:
    """Median GB/s of a copy of so many MB over ``seconds``."""
    source = torch.zeros(megabytes * 10**6, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = median_seconds(lambda: target.copy_(source), device, seconds)
    return 2 * len(source) / taken / 1e9


def median_seconds(run, device: str, seconds: float) -> float:
    """Of one ``run``, over ``seconds``."""

    def once():
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    # Where bf16 is emulated a product takes a second, so few must do there.
    for _ in range(2):
        once()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        times.append(once())
    return statistics.median(times)


def main():
    flags = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    flags.add_argument("--shape", type=int, nargs=3, required=True, help="m k n")
    flags.add_argument("--device", choices=("cpu", "cuda"), required=True)
    flags.add_argument("--seconds", type=float, default=1.0)
    flags.add_argument("--copy-mb", type=int, help="MB of the copy")
    flags = flags.parse_args()
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    found = {
        name: measure(flags.shape, dtype, flags.device, flags.seconds)
        for name, dtype in dtypes.items()
    }
    if flags.copy_mb:
        cuda = flags.device == "cuda"
        found["device"] = torch.cuda.get_device_name() if cuda else "cpu"
        found["copy"] = measure_copy(flags.copy_mb, flags.device, flags.seconds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
