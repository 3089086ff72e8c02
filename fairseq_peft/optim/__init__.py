"""fairseq optimizers of the plugin."""

from fairseq_peft.optim import peft_adamw  # noqa: F401
