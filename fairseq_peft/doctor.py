"""What ``fairseq-peft doctor`` looks at: the environment as data, and known bad combinations.

``look()`` collects an ``Environment`` (in subprocesses: a broken import must not break the doctor),
``CHECKS`` turns it into problems, each with its cure. A new check is one more entry in the list.
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
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Callable

from fairseq_peft.fairseq_fixes.compat import RECIPE

PACKAGE_DIR = Path(__file__).resolve().parent
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
FIX_FAIRSEQ = "pip install --force-reinstall --no-deps --no-build-isolation fairseq-fixed==0.12.3.1"

ERROR, WARNING, NOTE = "error", "warning", "note"


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


@dataclass(frozen=True)
class Check:
    """One known bad combination. ``text`` may name {python} and, by attribute, any distribution."""

    name: str
    level: str
    applies: Callable[[Environment], bool]
    text: str
    cure: str


@dataclass(frozen=True)
class Problem:
    name: str
    level: str
    text: str
    cure: str


def _stock(env: Environment) -> bool:
    return env.has("fairseq") and not env.has("fairseq-fixed")


def _no_fairseq(env: Environment) -> bool:
    return not env.has("fairseq") and not env.has("fairseq-fixed") and not env.imports("fairseq")


def _not_compiled(env: Environment) -> bool:
    return env.imports("fairseq") and not env.imports("fairseq.data.data_utils_fast")


def _unexplained(env: Environment) -> bool:
    return (
        env.has("fairseq-fixed")
        and not env.has("fairseq")
        and env.imports("torch")
        and not env.imports("fairseq")
    )


CHECKS = [
    Check(
        "python-version",
        WARNING,
        lambda env: not env.has("python", "3.9", "3.13"),
        "Python {python} is outside 3.9 to 3.12.",
        "Make a virtual environment with Python 3.11 and run scripts/setup.sh in it.",
    ),
    Check(
        "torch-missing",
        ERROR,
        lambda env: not env.imports("torch"),
        "torch does not import: {torch_error}",
        "Install torch 2.4 or newer (scripts/setup.sh does), before fairseq, which is "
        "compiled against it.",
    ),
    Check(
        "fairseq-missing",
        ERROR,
        _no_fairseq,
        "fairseq is not installed.",
        RECIPE,
    ),
    Check(
        "two-fairseqs",
        ERROR,
        lambda env: env.has("fairseq") and env.has("fairseq-fixed"),
        "Both fairseq {fairseq} and fairseq-fixed {fairseq_fixed} are installed: they overwrite "
        "each other's files, and pip does not notice.",
        f"pip uninstall -y fairseq fairseq-fixed; then {FIX_FAIRSEQ}",
    ),
    Check(
        "stock-mutable-default",
        ERROR,
        lambda env: _stock(env) and env.has("python", "3.11"),
        "Stock fairseq {fairseq} does not import on Python 3.11 or newer "
        "('mutable default ... CommonConfig').",
        f"pip uninstall -y fairseq; then {RECIPE}",
    ),
    Check(
        "stock-better-transformer",
        ERROR,
        lambda env: _stock(env) and env.has("fairseq", "0.12.2", "0.12.3"),
        "Stock fairseq {fairseq} keeps a second, trainable copy of each encoder layer's weights "
        "(BetterTransformer) and runs on it in eval mode, past any adapter; the plugin refuses it.",
        f"pip uninstall -y fairseq; then {RECIPE}",
    ),
    Check(
        "stock-numpy",
        WARNING,
        lambda env: _stock(env) and env.has("numpy", "1.24"),
        "Stock fairseq {fairseq} uses np.float and np.int, which numpy {numpy} no longer has.",
        'pip install "numpy<1.24", or fairseq-fixed in place of fairseq.',
    ),
    Check(
        "pip-omegaconf",
        NOTE,
        lambda env: (_stock(env) or _no_fairseq(env)) and env.has("pip", "24.1"),
        "pip {pip} cannot resolve stock fairseq 0.12.2 (it wants omegaconf<2.1, whose metadata pip "
        "24.1 and newer reject).",
        "Install fairseq-fixed==0.12.3.1 instead, which wants omegaconf 2.3.0.",
    ),
    Check(
        "old-omegaconf",
        ERROR,
        lambda env: env.has("fairseq-fixed") and env.has("omegaconf", "0", "2.3"),
        "fairseq-fixed {fairseq_fixed} needs omegaconf 2.3.0 and hydra-core 1.3.2; omegaconf "
        "{omegaconf} is here.",
        "pip install hydra-core==1.3.2 omegaconf==2.3.0",
    ),
    Check(
        "setuptools-81",
        WARNING,
        lambda env: (
            env.has("setuptools", "81")
            and (not env.imports("fairseq") or not env.imports("fairseq.data.data_utils_fast"))
        ),
        "setuptools {setuptools} has no pkg_resources any more, which compiling fairseq may need.",
        'pip install "setuptools<81" wheel cython numpy; then fairseq with --no-build-isolation.',
    ),
    Check(
        "not-compiled",
        ERROR,
        _not_compiled,
        "fairseq's compiled module data_utils_fast is missing ({fast_error}): no batch can be made "
        "without it.",
        "Install g++ and Python's headers (Debian: apt-get install build-essential python3-dev), "
        f'pip install "setuptools<81" wheel cython numpy; then {FIX_FAIRSEQ}',
    ),
    Check(
        "fairseq-broken",
        ERROR,
        _unexplained,
        "fairseq-fixed {fairseq_fixed} is installed but does not import: {fairseq_error}",
        f"Install what is missing, or all of it again: {RECIPE}",
    ),
    Check(
        "weights-only",
        ERROR,
        lambda env: env.has("torch", "2.6") and env.loads_namespace is False,
        "torch {torch} loads no checkpoint that holds an argparse.Namespace (torch.load has "
        "weights_only=True since 2.6), and published fairseq checkpoints do.",
        "Start with --user-dir fairseq_peft (or import fairseq_peft first): it allows that class.",
    ),
    Check(
        "torchaudio",
        NOTE,
        lambda env: env.has("fairseq-fixed") and not env.has("torchaudio"),
        "pip says that fairseq-fixed requires torchaudio, which is not installed: text models "
        "never import it.",
        "Nothing to do; installing it may replace torch by another build.",
    ),
    Check(
        "sentencepiece-missing",
        WARNING,
        lambda env: not env.imports("sentencepiece"),
        "sentencepiece does not import: raw text cannot be prepared or classified.",
        "pip install sentencepiece",
    ),
    Check(
        "tensorboard-missing",
        WARNING,
        lambda env: env.imports("torch") and not env.imports("torch.utils.tensorboard"),
        "tensorboard does not import: runs leave metrics.jsonl, but nothing for TensorBoard.",
        "pip install tensorboard",
    ),
    Check(
        "report-missing",
        WARNING,
        lambda env: not (env.imports("sklearn") and env.imports("matplotlib")),
        "scikit-learn or matplotlib does not import: the report lacks its tf-idf row or pictures.",
        "pip install scikit-learn matplotlib",
    ),
]


def find_problems(env: Environment, checks: list[Check] | None = None) -> list[Problem]:
    """The checks that apply to ``env``, errors first."""
    words = {name.replace("-", "_"): version for name, version in env.versions.items()}
    words["python"] = env.python
    words["torch_error"] = env.import_errors.get("torch", "")
    words["fairseq_error"] = env.import_errors.get("fairseq", "")
    words["fast_error"] = env.import_errors.get("fairseq.data.data_utils_fast", "")
    found = [
        Problem(check.name, check.level, check.text.format_map(words), check.cure)
        for check in (CHECKS if checks is None else checks)
        if check.applies(env)
    ]
    return sorted(found, key=lambda problem: (ERROR, WARNING, NOTE).index(problem.level))


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
