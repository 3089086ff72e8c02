"""The environment as data: versions, what imports, the CPU, and whether training starts.

Everything that may break is tried in a process of its own.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

PACKAGE_DIR = Path(__file__).resolve().parents[1]
# fmt: off
DISTRIBUTIONS = [
    "fairseq-peft", "torch", "torchaudio", "fairseq-fixed", "fairseq", "numpy",
    "hydra-core", "omegaconf", "sentencepiece", "tensorboard", "scikit-learn", "scipy",
    "matplotlib", "safetensors", "transformers", "peft", "accelerate", "setuptools",
    "cython", "pip",
]
MODULES = [
    "torch", "numpy", "fairseq", "fairseq.data.data_utils_fast",
    "hydra", "omegaconf", "sentencepiece", "torch.utils.tensorboard",
    "sklearn", "matplotlib", "safetensors",
]
# fmt: on
TRAIN_FLAGS = ["--arch", "roberta_small_lora", "--task", "sentence_classification", "--help"]
EXPECTED_FLAG = "--lora-rank"


@dataclass
class Environment:
    """What is here. Everything the checks read, so that a test can make one up."""

    python: str = "3.11.0"
    versions: dict[str, str] = field(default_factory=dict)  # distributions that are installed
    import_errors: dict[str, str] = field(default_factory=dict)  # module -> why it does not import
    features: dict = field(default_factory=dict)
    loads_namespace: bool | None = None  # does a checkpoint that holds an argparse.Namespace load?
    train_error: str | None = None  # why fairseq-train with the plugin does not work
    train_seconds: float = 0.0

    def has(self, name: str, at_least: str = "0", below: str | None = None) -> bool:
        """Is the distribution (or ``python``) there, in the version range [at_least, below)?"""
        found = self.python if name == "python" else self.versions.get(name)
        if found is None:
            return False
        found = release(found)
        return found >= release(at_least) and (below is None or found < release(below))

    def imports(self, module: str) -> bool:
        return module not in self.import_errors


def release(version: str) -> tuple[int, ...]:
    """The numbers in front of a version: ``2.13.0+cpu`` -> (2, 13, 0)."""
    return tuple(int(number) for number in re.findall(r"\d+", re.split(r"[+a-z]", version)[0]))


# Runs alone in a new interpreter, in an empty folder: imports, features, a Namespace checkpoint.
_PROBE = r"""
import argparse, importlib, io, json, os, sys, tempfile
modules, package_parent = json.loads(sys.argv[1])
answer = {"import_errors": {}, "features": {}, "loads_namespace": None}
stdout = sys.stdout
sys.stdout = io.StringIO()

def one_line(error):
    return (type(error).__name__ + ": " + str(error)).strip().splitlines()[0][:300]

for name in modules:
    try:
        importlib.import_module(name)
    except BaseException as error:
        answer["import_errors"][name] = one_line(error)
if "torch" not in answer["import_errors"]:
    import torch
    features = answer["features"]
    features["threads"] = torch.get_num_threads()
    capability = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "unknown")
    features["cpu_capability"] = capability()
    features["mkldnn"] = torch.backends.mkldnn.is_available()
    features["cuda_build"] = torch.version.cuda
    features["gpus"] = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            features["gpus"].append(
                {"name": gpu.name, "memory_bytes": gpu.total_memory, "bf16": gpu.major >= 8})
    mps = getattr(torch.backends, "mps", None)
    features["mps"] = bool(mps and mps.is_available())
if not answer["import_errors"].keys() & {"torch", "fairseq"}:
    sys.path.insert(0, package_parent)
    try:
        import fairseq_peft
        from fairseq_peft import precision
        cuda = precision.uses_cuda()
        answer["features"]["bf16_speed"] = precision.bf16_speed(cuda)
        answer["features"]["precision"] = precision.resolve("auto", cuda)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "checkpoint.pt")
            torch.save({"args": argparse.Namespace(arch="x"), "model": {}}, path)
            try:
                torch.load(path, map_location="cpu")
                answer["loads_namespace"] = True
            except Exception:
                answer["loads_namespace"] = False
    except BaseException as error:
        answer["import_errors"]["fairseq_peft"] = one_line(error)
stdout.write(json.dumps(answer))
"""


def _start(arguments: list[str], folder: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:400] if lines else "no message"


def look() -> Environment:
    """The environment of this interpreter; takes as long as importing everything once."""
    env = Environment(python=platform.python_version())
    for name in DISTRIBUTIONS:
        try:
            env.versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        train = _start(
            ["-m", "fairseq_cli.train", "--user-dir", str(PACKAGE_DIR), *TRAIN_FLAGS], folder
        )
        probe = _start(["-c", _PROBE, json.dumps([MODULES, str(PACKAGE_DIR.parent)])], folder)
        train_out, train_err = train.communicate()
        env.train_seconds = round(time.monotonic() - started, 1)
        probe_out, probe_err = probe.communicate()
    try:
        answer = json.loads(probe_out)
    except ValueError:  # an import took the interpreter down
        reason = f"the interpreter died (status {probe.returncode}): {_last_line(probe_err)}"
        answer = {"import_errors": dict.fromkeys(MODULES, reason), "features": {}}
    env.import_errors = answer["import_errors"]
    env.features = {**cpu_features(), **answer["features"]}
    env.loads_namespace = answer.get("loads_namespace")
    if train.returncode != 0:
        env.train_error = _last_line(train_err)
    elif EXPECTED_FLAG not in train_out:
        env.train_error = f"it runs, but its --help does not have {EXPECTED_FLAG}"
    return env


def cpu_features(cpuinfo: str | None = None) -> dict:
    """Cores this process may use, and the instructions that matter for bf16 (known on Linux)."""
    if cpuinfo is None:
        path = Path("/proc/cpuinfo")
        cpuinfo = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    flags = set(flags.group(1).split()) if flags else set()
    model = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    cores = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return {
        "cpu": model.group(1).strip() if model else platform.machine(),
        "cores": cores,
        "avx512": "avx512f" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "amx_bf16": "amx_bf16" in flags,
    }
