"""Imported by the fork server before its first fork: one configuration, put together.

Composing is most of what a short run does. Hydra's grammar is faster once it has been used, and
most of what it parses is the same for every run: fairseq's defaults.
"""

import copy

import quick_seeds  # noqa: F401
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from hydra.core.override_parser.overrides_parser import OverridesParser

parse, parsed = OverridesParser.parse_rule, {}


def parse_once(parser, text, rule):
    if (text, rule) not in parsed:
        parsed[text, rule] = parse(parser, text, rule)
    return copy.deepcopy(parsed[text, rule])


def compose(name, arch):
    words = ["data", "--task", name, "--criterion", name, "--arch", arch]
    parser = options.get_training_parser()
    convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, words))


OverridesParser.parse_rule = parse_once
compose("masked_lm", "roberta_base")
