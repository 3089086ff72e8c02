"""fairseq criterions of the plugin."""

from fairseq_peft.criterions import sentence_classification  # noqa: F401
