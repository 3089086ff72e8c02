"""BitFit: the paper's scopes, in company."""

SETTINGS = [
    ("bitfit", {"bitfit_scope": "query_middle_mlp"}),
    ("bitfit,lora", {"peft_targets": "q_proj,fc2"}),
    ("bitfit,layer_norm", {}),
    ("bitfit,ia3", {}),
    # The adapter's own biases are no biases of the base.
    ("bitfit,adapter", {"adapter_bottleneck": 5}),
]
