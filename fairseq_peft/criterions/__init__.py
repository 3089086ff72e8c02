"""fairseq criterions of the plugin."""

from fairseq_peft.fairseq_fixes.compat import require_fairseq

require_fairseq()

from fairseq_peft.criterions import answers, sentence_classification  # noqa: E402, F401
