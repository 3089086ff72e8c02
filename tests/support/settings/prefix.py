"""Prefixes: positions, the MLP, in company."""

SETTINGS = [
    ("prefix", {"prefix_positions": "reserved", "prefix_num_tokens": 3}),
    ("prefix", {"prefix_mlp": 6}),
    ("prefix,prompt", {"prefix_positions": "reserved", "prefix_num_tokens": 4}),
    ("prefix,prompt", {"prefix_mlp": 6, "prompt_mlp": 5, "prompt_num_tokens": 3}),
    ("lora,prefix", {"prefix_num_tokens": 4}),
    # He et al. 2022, arXiv:2110.04366: the parts of a mix-and-match adapter.
    ("adapter,prefix", {"prefix_num_tokens": 4}),
]
