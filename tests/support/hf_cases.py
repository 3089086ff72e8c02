"""What tests export to Hugging Face PEFT: methods, their flags, what the config says."""

from __future__ import annotations

ALL = "q_proj,k_proj,v_proj,out_proj,fc1,fc2"
LAYER = "roberta.encoder.layer.{}."
#: case -> (--peft, its flags, what adapter_config.json must say beside peft_type).
CASES = {
    "lora": ("lora", {}, {"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]}),
    "rslora": ("lora", {"lora_rslora": True, "lora_dropout": 0.25}, {"use_rslora": True}),
    "all linear maps": (
        "lora",
        {"peft_targets": "all-linear", "lora_rank": 2, "lora_alpha": 2.5},
        {
            "lora_alpha": 2.5,
            "target_modules": [
                *("query", "key", "value", "attention.output.dense"),
                *("intermediate.dense", "output.dense"),
            ],
        },
    ),
    # The end of the name, output.dense, would also mean attention.output.dense.
    "fc2": (
        "lora",
        {"peft_targets": "fc2"},
        {"target_modules": [LAYER.format(i) + "output.dense" for i in range(2)]},
    ),
    "one layer": (
        "lora",
        {"lora_layers": "1"},
        {"target_modules": [LAYER.format(1) + f"attention.self.{n}" for n in ("query", "value")]},
    ),
    "embedding": (
        "lora",
        {"peft_targets": "embed_tokens,q_proj"},
        {"target_modules": ["query", "word_embeddings"]},
    ),
    "patterns": (
        "lora",
        {
            "peft_targets": ALL,
            "lora_rank_pattern": "layers.0.self_attn.q_proj=4,fc2=3",
            "lora_alpha_pattern": "v_proj=5,out_proj=1.5",
        },
        {
            "rank_pattern": {
                LAYER.format(0) + "attention.self.query": 4,
                **{LAYER.format(i) + "output.dense": 3 for i in range(2)},
            },
            "alpha_pattern": {"value": 5, "attention.output.dense": 1.5},
        },
    ),
    "biases of maps": ("lora", {"lora_bias": "lora_only"}, {"bias": "lora_only"}),
    "all biases": ("lora", {"lora_bias": "all"}, {"bias": "all"}),
    "pissa": ("lora", {"lora_init": "pissa"}, {"init_lora_weights": "pissa"}),
    "olora": ("lora", {"lora_init": "olora", "lora_rank": 3}, {"init_lora_weights": "olora"}),
    "dora": ("dora", {"peft_targets": ALL}, {"use_dora": True}),
    "ia3": (
        "ia3",
        {},
        {
            "target_modules": [
                LAYER.format(i) + name
                for i in range(2)
                for name in ("attention.self.key", "attention.self.value", "output.dense")
            ],
            "feedforward_modules": [LAYER.format(i) + "output.dense" for i in range(2)],
        },
    ),
    "ia3 as peft": (
        "ia3",
        {"ia3_targets": "k_proj,v_proj,out_proj,fc2", "ia3_feedforward": "out_proj,fc2"},
        {
            "target_modules": ["key", "value", "attention.output.dense", "output.dense"],
            "feedforward_modules": ["attention.output.dense", "output.dense"],
        },
    ),
    # As a loose end, output.dense would also make attention.output.dense feed-forward.
    "ia3 behind out_proj": (
        "ia3",
        {"ia3_targets": "out_proj,fc2"},
        {"feedforward_modules": [LAYER.format(i) + "output.dense" for i in range(2)]},
    ),
    "ia3 on outputs": (
        "ia3",
        {"ia3_targets": "k_proj", "ia3_feedforward": "none"},
        {"target_modules": ["key"], "feedforward_modules": []},
    ),
    "prompt": (
        "prompt",
        {"prompt_num_tokens": 4, "prompt_placement": "before_bos"},
        {"num_virtual_tokens": 4, "token_dim": 16, "num_transformer_submodules": 1},
    ),
    "prefix": (
        "prefix",
        {"prefix_num_tokens": 4, "prefix_positions": "reserved", "prefix_mlp": 6},
        {"num_virtual_tokens": 4, "num_layers": 2, "num_attention_heads": 4},
    ),
}
#: The same of encoder-decoders.
TEXT_CASES = {
    "lora": ("lora", {}, {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}),
    "ia3": (
        "ia3",
        {},
        {"target_modules": ["k_proj", "v_proj", "fc2"], "feedforward_modules": ["fc2"]},
    ),
    "all linear maps": (
        "lora",
        # A small alpha: what updates of all maps do to a tiny model is large, and so is rounding.
        {
            **{"peft_targets": "all-linear", "lora_rank": 2, "lora_alpha": 1.5},
            **{"lora_dropout": 0.25, "lora_rslora": True},
        },
        {"target_modules": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]},
    ),
    "cross-attention": (
        "lora",
        {"peft_targets": "encoder_attn.q_proj,encoder_attn.v_proj"},
        {
            "target_modules": [
                f"model.decoder.layers.{i}.encoder_attn.{name}"
                for i in range(2)
                for name in ("q_proj", "v_proj")
            ]
        },
    ),
    "patterns": (
        "lora",
        {"lora_rank_pattern": "v_proj=3", "lora_alpha_pattern": "encoder_attn.q_proj=5"},
        {"rank_pattern": {"v_proj": 3}},
    ),
    "biases of maps": ("lora", {"lora_bias": "lora_only"}, {"bias": "lora_only"}),
    "pissa": ("lora", {"lora_init": "pissa"}, {"init_lora_weights": "pissa"}),
    "prompt": (
        "prompt",
        {"prompt_num_tokens": 3, "prompt_placement": "before_bos", "prompt_mlp": 5},
        {"num_virtual_tokens": 3, "token_dim": 16, "num_transformer_submodules": 1},
    ),
    "dora": ("dora", {"peft_targets": "q_proj,fc1,fc2"}, {"use_dora": True}),
    "ia3 on outputs": (
        "ia3",
        {"ia3_targets": "k_proj,fc1", "ia3_feedforward": "none"},
        {"target_modules": ["k_proj", "fc1"], "feedforward_modules": []},
    ),
}
#: The same of Hugging Face's own models, where they differ.
OWN_CASES = {
    "all linear maps": (
        "lora",
        {"peft_targets": "all-linear", "lora_rank": 2, "lora_rslora": True},
        {"target_modules": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"], "use_rslora": True},
    ),
    "prompt": ("prompt", {"prompt_num_tokens": 3}, {"num_virtual_tokens": 3, "token_dim": 16}),
    "dora": ("dora", {"peft_targets": "c_attn,c_fc"}, {"use_dora": True}),
    "ia3": (
        "ia3",
        {},
        {
            "feedforward_modules": [f"transformer.h.{i}.mlp.c_proj" for i in range(2)],
        },
    ),
    "prefix": (
        "prefix",
        {"prefix_num_tokens": 3, "prefix_positions": "reserved", "prefix_mlp": 5},
        {"num_virtual_tokens": 3, "num_layers": 2, "num_attention_heads": 4},
    ),
    "patterns": (
        "lora",
        {
            "peft_targets": "query_key_value,dense_h_to_4h",
            "lora_rank_pattern": "h.0.mlp.dense_h_to_4h=4",
            "lora_alpha_pattern": "query_key_value=5",
        },
        {
            "rank_pattern": {"transformer.h.0.mlp.dense_h_to_4h": 4},
            "alpha_pattern": {"query_key_value": 5},
        },
    ),
    "biases of maps": ("lora", {"lora_bias": "lora_only"}, {"bias": "lora_only"}),
}
