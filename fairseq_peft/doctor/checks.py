"""Known bad combinations, each with its cure: one entry of ``CHECKS``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

from fairseq_peft.doctor.environment import Environment
from fairseq_peft.fairseq_fixes.compat import RECIPE

FIX_FAIRSEQ = "pip install --force-reinstall --no-deps --no-build-isolation fairseq-fixed==0.12.3.1"

ERROR, WARNING, NOTE = "error", "warning", "note"


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
