"""LoRA: each map, ranks and scales by name, starts, biases, in company."""

LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
SETTINGS = [("lora", {"peft_targets": target, "lora_rank": 3}) for target in LINEARS] + [
    ("lora", {"peft_targets": "all-linear", "lora_layers": "1", "lora_rslora": True}),
    ("lora", {"peft_targets": r"layers\.[01]\.(fc1|self_attn\.k_proj)", "lora_dropout": 0.2}),
    (
        "lora",
        {"lora_rank_pattern": "layers.0.self_attn.q_proj=2", "lora_alpha_pattern": "v_proj=3"},
    ),
    ("lora", {"peft_targets": "embed_tokens", "lora_rank": 3}),
    ("lora", {"peft_targets": "embed_tokens,fc1,v_proj", "lora_bias": "lora_only"}),
    ("lora", {"lora_bias": "all"}),
    ("lora", {"lora_init": "pissa", "peft_targets": "all-linear"}),
    ("lora", {"lora_init": "olora", "peft_targets": "all-linear", "lora_rslora": True}),
    ("lora", {"lora_init": "pissa", "peft_targets": "embed_tokens,q_proj"}),
    ("lora", {"lora_lr_ratio": 16.0}),
    ("lora,adapter", {"peft_targets": "embed_tokens,fc2", "lora_bias": "all"}),
    ("lora,ia3", {"lora_init": "pissa", "peft_targets": "k_proj,fc2"}),
    ("lora,prompt", {"peft_targets": "embed_tokens"}),
    ("lora,bitfit", {"lora_bias": "lora_only"}),
    ("lora,layer_norm", {"lora_bias": "all", "peft_targets": "all-linear,embed_tokens"}),
]
