"""fairseq tasks of the plugin."""

from fairseq_peft.fairseq_fixes.compat import require_fairseq

require_fairseq()

from fairseq_peft.tasks import answers, sentence_classification  # noqa: E402, F401
