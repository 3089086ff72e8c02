"""AdapterFusion: styles, pre-norm, knobs, in company."""

WIDE = {"fusion_bottleneck": 12}
SETTINGS = [
    ("fusion", {"fusion_style": "pfeiffer", "fusion_placement": "both", **WIDE}),
    ("fusion", {"fusion_style": "parallel", "fusion_scaling": "learned", **WIDE}),
    ("fusion", {"fusion_style": "houlsby", "encoder_normalize_before": True, **WIDE}),
    ("fusion", {"fusion_layer_norm": True, "fusion_reduction": 2.0, "fusion_dropout": 0.2}),
    ("fusion", {"fusion_skip_layers": 1, "fusion_regularization": 0.0}),
    ("fusion,lora", {"fusion_style": "pfeiffer"}),
]
