"""What the contestants of predict_speed.py and many_adapters.py share: flags, and what they report.

Needs torch and nothing else: it runs under fairseq's Python and under Hugging Face's."""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import statistics
import time

import torch
from peak import peak_bytes, resident_bytes


def parser(description: str) -> argparse.ArgumentParser:
    """The flags that predict_speed.py gives to every contestant; texts come as JSON on stdin."""
    flags = argparse.ArgumentParser(description=description, allow_abbrev=False)
    flags.add_argument("--started", type=float, required=True, help="time.time() at the start")
    flags.add_argument("--precision", choices=("fp32", "bf16"), required=True)
    flags.add_argument("--batch-size", type=int, required=True)
    flags.add_argument("--max-tokens", type=int, required=True, help="longest row, with specials")
    flags.add_argument("--warmup", type=int, required=True, help="texts before the clock starts")
    flags.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return flags


def fingerprints(rows) -> list[list]:
    """For each row of token ids its length and a hash: were all contestants fed the same?"""
    return [
        [len(row), hashlib.sha256(" ".join(map(str, row)).encode()).hexdigest()[:12]]
        for row in rows
    ]


def milliseconds_alone(predict, texts, number: int = 100) -> dict:
    """Texts one by one, as a service without batches meets them: milliseconds from a text to its
    label, p50 and p99 of the first ``number``; and p50 of the process's CPU time, all threads
    together, which other programs do not lengthen."""
    predict(texts[:1])
    found, cpu = [], []
    for text in texts[:number]:
        start, cpu_start = time.perf_counter(), time.process_time()
        predict([text])
        cpu.append(1e3 * (time.process_time() - cpu_start))
        found.append(1e3 * (time.perf_counter() - start))
    found.sort()
    p99 = found[int(0.99 * (len(found) - 1))]
    return {"p50": statistics.median(found), "p99": p99, "cpu_p50": statistics.median(cpu)}


def memory() -> int:
    """Bytes of this process that are in memory now; where the system does not tell, at the most."""
    gc.collect()
    return resident_bytes() or peak_bytes()


def finish(args, loaded: float, seconds: float, rows: list, more=None, **versions) -> None:
    """Print everything as the last line of stdout.

    Args:
        loaded: time.time() when the model was ready and warm.
        seconds: from raw texts to labels and probabilities of all of them.
        rows: ``fingerprints``, made outside of the clock.
        more: name -> what else is to be told.
    """
    line = {
        "startup_s": loaded - args.started,
        "seconds": seconds,
        "texts": len(rows),
        "tokens": sum(length for length, _ in rows),
        "rows": rows,
        "peak_rss_bytes": peak_bytes(),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, **versions},
        **(more or {}),
    }
    print(json.dumps(line), flush=True)
