"""What ``fairseq-peft doctor`` looks at: the environment as data, and known bad combinations.

``look()`` collects an ``Environment`` (in subprocesses: a broken import must not break the doctor),
``CHECKS`` turns it into problems, each with its cure. A new check is one more entry in the list.
"""

from fairseq_peft.doctor.checks import CHECKS, Check, Problem, find_problems
from fairseq_peft.doctor.environment import PACKAGE_DIR, Environment, cpu_features, look, release
from fairseq_peft.doctor.telling import as_json, as_text, describe_cpu, describe_gpu

__all__ = [
    "CHECKS",
    "PACKAGE_DIR",
    "Check",
    "Environment",
    "Problem",
    "as_json",
    "as_text",
    "cpu_features",
    "describe_cpu",
    "describe_gpu",
    "find_problems",
    "look",
    "release",
]
