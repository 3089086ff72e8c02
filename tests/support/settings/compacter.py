"""Compacter: styles, pre-norm, sizes, knobs, in company."""

SETTINGS = [
    ("compacter", {"compacter_style": "pfeiffer", "compacter_bottleneck": 8}),
    ("compacter", {"compacter_style": "pfeiffer", "encoder_normalize_before": True}),
    ("compacter", {"compacter_phm_dim": 2, "compacter_rank": 3, "compacter_bottleneck": 6}),
    (
        "compacter",
        {
            "compacter_layer_norm": True,
            "compacter_scaling": "learned",
            "compacter_placement": "attention",
            "compacter_skip_layers": 1,
        },
    ),
    ("compacter,lora", {}),
    ("compacter,prompt", {}),
]
