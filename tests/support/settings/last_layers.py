"""The last layers: how many, with the embedding or without, in company."""

SETTINGS = [
    ("last_layers", {"last_layers_num_layers": 2}),
    ("last_layers", {"last_layers_embeddings": True}),
    ("last_layers,lora", {"peft_targets": r"layers\.0\..*_proj"}),
    ("last_layers,ia3", {"ia3_layers": "0"}),
    ("last_layers,bitfit", {}),
    ("last_layers,layer_norm", {}),
    ("last_layers,adapter", {"adapter_bottleneck": 5}),
    ("last_layers,prompt", {}),
]
