"""Prompts: places, starts, the MLP, in company."""

SETTINGS = [
    ("prompt", {"prompt_placement": "before_bos", "prompt_num_tokens": 3}),
    ("prompt", {"prompt_init": "random", "prompt_num_tokens": 5}),
    ("prompt", {"prompt_mlp": 6}),
    ("prompt", {"prompt_mlp": 6, "prompt_init": "random", "prompt_placement": "before_bos"}),
    ("lora,prompt", {}),
    ("adapter,prompt", {"prompt_mlp": 6}),
]
