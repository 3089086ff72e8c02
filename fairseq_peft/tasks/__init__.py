"""fairseq tasks of the plugin."""

from fairseq_peft.tasks import sentence_classification  # noqa: F401
