"""Data sets and batches for fairseq tasks."""

from fairseq_peft.fairseq_fixes.compat import require_fairseq

require_fairseq()
