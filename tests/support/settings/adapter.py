"""Adapters: styles, places, pre-norm, knobs, in company."""

BOTH = {"adapter_placement": "both", "adapter_bottleneck": 12}  # wide: a relu may be dead
SETTINGS = [
    *[
        ("adapter", {"adapter_placement": p, "adapter_bottleneck": 5})
        for p in ("attention", "both")
    ],
    ("adapter", {"adapter_style": "houlsby"}),
    *[("adapter", {"adapter_style": s, **BOTH}) for s in ("pfeiffer", "parallel")],
    *[
        ("adapter", {"adapter_style": s, "encoder_normalize_before": True, **BOTH})
        for s in ("houlsby", "pfeiffer", "parallel")
    ],
    ("adapter", {"adapter_layer_norm": True, "adapter_scaling": "learned", **BOTH}),
    ("adapter", {"adapter_style": "pfeiffer", "adapter_layer_norm": True}),
    ("adapter", {"adapter_style": "parallel", "adapter_scaling": "learned"}),
    ("adapter", {"adapter_reduction": 3.0, "adapter_activation": "tanh", "adapter_dropout": 0.2}),
    ("adapter", {"adapter_skip_layers": 1, "adapter_placement": "both"}),
    ("adapter,lora", {"adapter_style": "pfeiffer"}),
    ("adapter,prompt", {}),
]
