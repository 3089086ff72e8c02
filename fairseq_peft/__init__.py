"""LoRA, adapters and soft prompts for fairseq: the plugin behind ``--user-dir fairseq_peft``."""

__version__ = "0.1.0"
