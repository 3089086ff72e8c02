"""AdaLoRA: each map, one layer, without the penalty, in company."""

LINEARS = ("k_proj", "out_proj", "fc1", "fc2")
SMALL = {"adalora_init_rank": 3, "adalora_rank": 2}
SETTINGS = [("adalora", {"peft_targets": target, **SMALL}) for target in LINEARS]
SETTINGS += [
    (
        "adalora",
        {"peft_targets": "all-linear", "adalora_layers": "1", "adalora_orthogonality": 0.0},
    ),
    ("adalora,prompt", {}),
    ("adalora,adapter", {}),
]
