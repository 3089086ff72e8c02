"""What fairseq's command line leaves out: the whole ``--help``, and what is missing, as a sentence.

fairseq answers ``--help`` before it adds the flags of the architecture, task, criterion and
optimizer, so none of them would ever be shown; and it dies of a KeyError or an empty RuntimeError
where ``--task`` or ``--arch`` is missing.
"""

from __future__ import annotations

import argparse
import functools
import sys

from fairseq import options
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_REGISTRY

from fairseq_peft.errors import InputError


def complete_help() -> None:
    """Make fairseq's parser look at what is chosen before it parses."""
    original = options.parse_args_and_arch
    if getattr(original, "shows_all_flags", False):
        return

    @functools.wraps(original)
    def parse(parser, input_args=None, *args, **kwargs):
        argv = sys.argv[1:] if input_args is None else list(input_args)
        if "--help" in argv or "-h" in argv:
            add_chosen(parser, argv)
        else:
            check_chosen(parser, argv)
        return original(parser, input_args, *args, **kwargs)

    parse.shows_all_flags = True
    options.parse_args_and_arch = parse


def check_chosen(parser, argv) -> None:
    """Raise InputError where ``--task`` or ``--arch`` is needed and missing."""
    flags = {flag: action for action in parser._actions for flag in action.option_strings}
    given = {word.split("=")[0] for word in argv}
    for flag, example in (("--task", "sentence_classification"), ("--arch", "roberta_small_lora")):
        action = flags.get(flag)
        if action is not None and flag not in given and action.default in (None, argparse.SUPPRESS):
            raise InputError(f"{flag} is missing. Give one, such as {flag} {example}.")


def add_chosen(parser, argv) -> None:
    """Add to ``parser`` the flags of what ``argv`` chooses."""
    registries = {"arch": ARCH_MODEL_REGISTRY, "task": TASK_REGISTRY}
    registries.update({name: registry["registry"] for name, registry in REGISTRIES.items()})
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in registries:
        chooser.add_argument("--" + name.replace("_", "-"))
    chosen, _ = chooser.parse_known_args(argv)
    for name, registry in registries.items():
        part = registry.get(getattr(chosen, name))
        if hasattr(part, "add_args"):
            part.add_args(
                parser.add_argument_group(f"--{name.replace('_', '-')} {getattr(chosen, name)}")
            )
