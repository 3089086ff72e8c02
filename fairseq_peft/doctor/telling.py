"""What the doctor says: an object for programs, a text for people."""

from __future__ import annotations

import sys
from dataclasses import asdict

from fairseq_peft.doctor.checks import Problem
from fairseq_peft.doctor.environment import DISTRIBUTIONS, MODULES, Environment


def as_json(env: Environment, problems: list[Problem]) -> dict:
    """What ``--json`` prints."""
    return {
        "schema": 1,
        "works": env.train_error is None,
        **asdict(env),
        "problems": [asdict(problem) for problem in problems],
    }


def as_text(env: Environment, problems: list[Problem]) -> str:
    """What a person reads: versions, features, problems with their cures, the verdict last."""
    lines = [f"{'python':<16}{env.python}  ({sys.executable})"]
    for name in DISTRIBUTIONS:
        if name in env.versions:
            lines.append(f"{name:<16}{env.versions[name]}")
    broken = {m: e for m, e in env.import_errors.items() if m not in ("torch", "fairseq")}
    lines += [
        "",
        f"{'cpu':<16}{describe_cpu(env.features)}",
        f"{'gpu':<16}{describe_gpu(env.features)}",
        f"{'precision':<16}{describe_precision(env.features)}",
    ]
    lines += ["", f"{'imports':<16}{', '.join(m for m in MODULES if env.imports(m)) or 'nothing'}"]
    lines += [f"{'':<16}{module}: {error}" for module, error in broken.items()]
    for problem in problems:
        lines += ["", f"{problem.level}: {problem.text}", f"  cure: {problem.cure}"]
    if env.train_error is None:
        verdict = f"works ({env.train_seconds} s to --help)"
    else:
        verdict = f"DOES NOT WORK: {env.train_error}"
    lines += ["", f"fairseq-train --user-dir fairseq_peft: {verdict}"]
    return "\n".join(lines) + "\n"


def describe_cpu(features: dict) -> str:
    """One line: cores, torch's threads, and the instructions torch can use."""
    words = [features.get("cpu", "unknown"), f"{features.get('cores')} cores"]
    if "threads" in features:
        words.append(f"torch: {features['threads']} threads, {features['cpu_capability']} kernels")
    for key, word in (
        ("avx512", "AVX-512"),
        ("avx512_bf16", "AVX-512 bf16"),
        ("amx_bf16", "AMX bf16"),
    ):
        words.append(word if features.get(key) else f"no {word}")
    return ", ".join(words)


def describe_precision(features: dict) -> str:
    """One line: what ``--precision auto`` means here, and why."""
    if "bf16_speed" not in features:
        return "unknown"
    return (
        f"auto is {features['precision']}: a product in bf16 has {features['bf16_speed']:.2f} "
        "times the speed of one in fp32"
    )


def describe_gpu(features: dict) -> str:
    """One line: the CUDA devices, or why there is none."""
    gpus = features.get("gpus", [])
    if gpus:
        return "; ".join(
            f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, "
            + ("bf16" if gpu["bf16"] else "no bf16")
            for gpu in gpus
        )
    if features.get("mps"):
        return "Apple MPS (fairseq does not use it)"
    if features.get("cuda_build"):
        return f"none (torch is built for CUDA {features['cuda_build']}, but sees no device)"
    return "none (torch is built for the CPU)" if "threads" in features else "unknown"
