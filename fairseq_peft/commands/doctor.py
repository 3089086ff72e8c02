"""Look at this installation: versions, CPU and GPU, known bad combinations with the cure.

The exit status is 0 only if `fairseq-train --user-dir fairseq_peft` works here, which is tried.
"""

from __future__ import annotations

import argparse
import json
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    from fairseq_peft import doctor

    env = doctor.look()
    problems = doctor.find_problems(env)
    if args.json:
        sys.stdout.write(json.dumps(doctor.as_json(env, problems), indent=1) + "\n")
    else:
        sys.stdout.write(doctor.as_text(env, problems))
    return 0 if env.train_error is None else 1
