"""DoRA: maps, ranks, biases, in company."""

SETTINGS = [
    ("dora", {"peft_targets": "all-linear", "lora_rank": 3, "lora_dropout": 0.2}),
    ("dora", {"peft_targets": "k_proj,fc2", "lora_layers": "1", "lora_rslora": True}),
    ("dora", {"lora_rank_pattern": "q_proj=2", "lora_bias": "lora_only"}),
    ("dora", {"lora_lr_ratio": 4.0, "lora_bias": "all"}),
    ("dora,prompt", {}),
    ("dora,ia3", {"peft_targets": "k_proj,fc2"}),
]
