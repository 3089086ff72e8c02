"""How much does ``fairseq-peft serve`` answer, how soon, and what becomes of an overload?

    python benchmarks/serve.py --base model.pt --adapter a=DIR --adapter b=DIR --texts FILE

Texts, a line each, are given to the adapters in turn. ``Classifier.predict`` in this process and
the service take turns on the same texts, with as many threads; the clients are threads of this
process, so what they cost counts against the service. Then a short queue is overloaded, and then
short texts are asked for until there have been ``--requests``, while the memory of the service is
looked at. Latency is from sending a request of one text to its answer. Prints a line of JSON each.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import itertools
import json
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", action="append", required=True, metavar="NAME=DIR")
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--number", type=int, default=300, help="texts of a turn (%(default)s)")
    parser.add_argument("--clients", type=int, default=32, help="at once (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, default=10_000, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    names = [one.partition("=")[0] for one in args.adapter]
    lines = args.texts.read_text(encoding="utf-8").splitlines()[: args.number]
    asked = list(zip(itertools.cycle(names), lines))
    tell("turns", turns(args, asked))
    with served(args, "--queue", 8, "--max-texts", 8) as (port, _):
        tell("overload", overload(port, asked))
    short = [(name, " ".join(text.split()[:3])) for name, text in asked]
    with served(args) as (port, pid):
        tell("memory", memory(port, pid, short, args))


def tell(name, figures):
    sys.stdout.write(json.dumps({name: figures}) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def served(args, *more):
    """A service: its port, and the id of its process."""
    words = [sys.executable, "-m", "fairseq_peft.cli", "serve", "--port", 0, "--base", args.base]
    words += [word for one in args.adapter for word in ("--adapter", one)]
    words += ["--threads", args.threads, *more]
    process = subprocess.Popen(list(map(str, words)), stderr=subprocess.PIPE, text=True)
    try:
        told = process.stderr.readline()
        yield int(re.search(r":(\d+);", told)[1]), process.pid
        process.terminate()
        if process.wait(60) != 0:
            raise RuntimeError(f"the service has ended with {process.returncode}")
    finally:
        process.kill()


def ask(port, name, text):
    """(status, seconds) of one request, by a connection of its own."""
    body = json.dumps({"adapter": name, "texts": [text]})
    started = time.perf_counter()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=600)) as asked:
        asked.request("POST", "/predict", body, {"Content-Type": "application/json"})
        response = asked.getresponse()
        answer = json.loads(response.read())
    if (response.status == 200) != (len(answer.get("predictions", ())) == 1):
        raise RuntimeError(f"{response.status}: {answer}")
    return response.status, time.perf_counter() - started


def turns(args, asked):
    """Texts a second of both, and the latencies of the service."""
    import torch

    from fairseq_peft import Classifier

    torch.set_num_threads(args.threads)
    (first, folder), *others = (one.split("=", 1) for one in args.adapter)
    classifier = Classifier.load(args.base, folder, name=first)
    for name, folder in others:
        classifier.add(name, folder)
    names, texts = zip(*asked)
    alone, service, latencies, single = [], [], [], []
    with served(args) as (port, _), ThreadPoolExecutor(args.clients) as threads:
        list(threads.map(lambda one: ask(port, *one), asked[: args.clients]))
        classifier.predict(texts[:8], names[:8])
        for _ in range(args.repeats):
            started = time.perf_counter()
            classifier.predict(texts, names)
            alone.append(len(asked) / (time.perf_counter() - started))
            started = time.perf_counter()
            answers = list(threads.map(lambda one: ask(port, *one), asked))
            service.append(len(asked) / (time.perf_counter() - started))
            latencies += [seconds for status, seconds in answers if status == 200]
            single += [ask(port, *one)[1] for one in asked[:50]]
    if len(latencies) != args.repeats * len(asked):
        raise RuntimeError("a request was not answered")
    return {
        "predict_texts_per_second": alone,
        "serve_texts_per_second": service,
        "ratios": [mine / other for mine, other in zip(service, alone)],
        f"latency_s_of_{args.clients}_clients": percentiles(latencies),
        "latency_s_of_one_client": percentiles(single),
    }


def percentiles(seconds):
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50": cuts[49], "p99": cuts[98]}


def overload(port, asked):
    """Statuses of 64 clients at a queue of 8: each request has exactly one."""
    with ThreadPoolExecutor(64) as threads:
        answers = list(threads.map(lambda one: ask(port, *one), asked))
    return {"requests": len(asked), "answers": collections.Counter(one for one, _ in answers)}


def memory(port, pid, short, args):
    """Resident megabytes after each tenth of the requests."""
    seen = []
    with ThreadPoolExecutor(args.clients) as threads:
        for _ in range(10):
            some = itertools.islice(itertools.cycle(short), args.requests // 10)
            list(threads.map(lambda one: ask(port, *one), some))
            status = Path(f"/proc/{pid}/status").read_text()
            seen.append(int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1000)
    return {"requests": args.requests, "resident_mb": seen}


if __name__ == "__main__":
    main()
