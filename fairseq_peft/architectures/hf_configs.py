"""Published configurations of Hugging Face's models, under the names that ``--hf-config`` takes.

Numbers alone, as the models' authors give them: a model is built from them with random weights.
"""

#: Architecture -> the ``model_type`` of its models: those that ``models.hf_families`` describes.
KINDS = {
    "hf_causal_lm": ("gpt2", "bloom", "opt", "llama", "mistral", "qwen2", "qwen3"),
    "hf_seq2seq": ("t5", "mt5", "bart"),
}

CONFIGS = {
    "t5-small": {  # Raffel et al. 2020, arXiv:1910.10683
        "model_type": "t5",
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_decoder_layers": 6,
        "num_heads": 8,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu",
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "tie_word_embeddings": True,
    },
    "gpt2": {  # Radford et al. 2019, the small one
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
    "bloom-560m": {  # Scao et al. 2022, arXiv:2211.05100
        "model_type": "bloom",
        "vocab_size": 250880,
        "hidden_size": 1024,
        "n_layer": 24,
        "n_head": 16,
        "layer_norm_epsilon": 1e-5,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    },
}
