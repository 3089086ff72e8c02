"""VeRA: other maps and ranks, one layer, in company."""

SETTINGS = [
    ("vera", {"peft_targets": "all-linear", "vera_rank": 5, "vera_dropout": 0.1}),
    ("vera", {"peft_targets": "fc2", "vera_layers": "1"}),
    ("vera,ia3", {"peft_targets": "v_proj,fc2", "vera_rank": 3}),
]
