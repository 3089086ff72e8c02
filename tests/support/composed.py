"""Imported by the fork server before its first fork: one configuration, put together.

Composing is most of what a short run does, and hydra's grammar is faster once it has been used.
"""

from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

WORDS = ["data", "--task", "masked_lm", "--criterion", "masked_lm", "--arch", "roberta_base"]

convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), WORDS))
