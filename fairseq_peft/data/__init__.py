"""Data sets and batches for fairseq tasks."""

from fairseq_peft.compat import require_fairseq

require_fairseq()
