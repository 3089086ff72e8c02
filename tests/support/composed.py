"""Imported by the fork server before its first fork: one configuration, put together.

Composing is most of what a short run does. Hydra's grammar is faster once it has been used, and most
of what it parses is the same for every run: fairseq's defaults.
"""

import copy

import quick_seeds  # noqa: F401
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from hydra.core.override_parser.overrides_parser import OverridesParser

WORDS = ["data", "--task", "masked_lm", "--criterion", "masked_lm", "--arch", "roberta_base"]

parse, parsed = OverridesParser.parse_rule, {}


def parse_once(parser, text, rule):
    if (text, rule) not in parsed:
        parsed[text, rule] = parse(parser, text, rule)
    return copy.deepcopy(parsed[text, rule])


OverridesParser.parse_rule = parse_once
convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), WORDS))
