"""OFT: other maps and blocks, one layer, in company."""

SETTINGS = [
    ("oft", {"peft_targets": "all-linear", "oft_block_size": 4}),
    ("oft", {"peft_targets": "fc2", "oft_layers": "1", "oft_block_size": 8}),
    ("oft,ia3", {"peft_targets": "v_proj,fc2", "oft_block_size": 2}),
]
