"""Layer norms: in company."""

# An adapter may have a layer norm of its own: that one is no tensor of the base.
SETTINGS = [
    ("layer_norm,lora", {}),
    ("layer_norm,prompt", {}),
    ("layer_norm,adapter", {"adapter_bottleneck": 5, "adapter_placement": "both"}),
]
