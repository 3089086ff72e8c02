"""fairseq optimizers and schedules of the plugin, and learning rates by layer."""

from fairseq_peft.fairseq_fixes.compat import require_fairseq

require_fairseq()

from fairseq_peft.optim import peft_adamw, warmup_stable_decay  # noqa: E402, F401
