"""fairseq models and architectures of the plugin."""

from fairseq_peft.fairseq_fixes.compat import require_fairseq

require_fairseq()

from fairseq_peft.models import hf_models, roberta, transformer, transformer_lm  # noqa: E402, F401
