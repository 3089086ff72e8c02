"""Tiny models of Hugging Face's kinds, with random weights, for tests that hold for every one."""

from __future__ import annotations

import argparse
import json
import random
import types

import torch

import fairseq_peft.plugin  # noqa: F401
from fairseq_peft.models import hf_base, hf_models

VOCAB = 40
WORDS = ["<pad>", "</s>", "<unk>", "good", "bad", *(f"w{i}" for i in range(VOCAB - 5))]
PAD = VOCAB
T5 = {
    "model_type": "t5",
    "vocab_size": VOCAB,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": VOCAB,
    "n_positions": 32,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
BLOOM = {
    "model_type": "bloom",
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "n_layer": 2,
    "n_head": 4,
    "hidden_dropout": 0.1,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
#: name -> config, flags.
KINDS = {
    "t5": (T5, {}),
    "t5-gated": (
        # Heads as in mT5-small: together they are not as wide as the model; two tables of words.
        {
            **T5,
            "feed_forward_proj": "gated-gelu",
            "d_kv": 6,
            "tie_word_embeddings": False,
            "num_layers": 2,
            "num_decoder_layers": 2,
        },
        {},
    ),
    "bart": (
        {
            "model_type": "bart",
            "vocab_size": VOCAB,
            "d_model": 16,
            "scale_embedding": True,
            "max_position_embeddings": 32,
            **{f"{half}_layers": 2 for half in ("encoder", "decoder")},
            **{f"{half}_attention_heads": 4 for half in ("encoder", "decoder")},
            **{f"{half}_ffn_dim": 24 for half in ("encoder", "decoder")},
        },
        {},
    ),
    "gpt2": (GPT2, {}),
    "gpt2-split": (GPT2, {"hf_split_qkv": True}),
    "bloom": (BLOOM, {}),
    "bloom-split": (BLOOM, {"hf_split_qkv": True}),
    "opt": (
        {
            "model_type": "opt",
            "vocab_size": VOCAB,
            "hidden_size": 16,
            "word_embed_proj_dim": 16,
            "ffn_dim": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
        },
        {},
    ),
    "llama": ({**LLAMA, "num_key_value_heads": 4}, {}),
    "llama-grouped": (LLAMA, {}),
}
#: The same of models whose tokens see 3 tokens alone, which is less than rows have.
WINDOWED = {
    "mistral": ({**LLAMA, "model_type": "mistral", "sliding_window": 3}, {}),
    "qwen2": (
        {
            **LLAMA,
            "model_type": "qwen2",
            "use_sliding_window": True,
            "sliding_window": 3,
            "max_window_layers": 1,  # its second layer alone has a window
        },
        {},
    ),
}


def write_tokenizer(folder, words=WORDS):
    """tokenizer.json that knows ``words``."""
    import tokenizers

    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_base(folder, config):
    """A folder as Hugging Face's are: a model with random weights, its config and tokenizer."""
    kind = config["model_type"]
    auto = next(arch.auto for arch in hf_models.ARCHS.values() if kind in arch.known)
    torch.manual_seed(1)
    values = {name: value for name, value in config.items() if name != "model_type"}
    hf_base.save(hf_base.build(kind, values, "", auto), folder)
    return write_tokenizer(folder)


def write_rows(folder, names, **sizes):
    """train.jsonl and so on: the answer, good or bad, is told by one word of the text.

    Args:
        names: what the two texts of a row are called.
        sizes: split -> rows.
    """
    rng = random.Random(1)
    folder.mkdir()
    for split, number in sizes.items():
        lines = []
        for row in range(number):
            words = [("w0", "w1")[row % 2], *rng.choices(WORDS[10:], k=rng.randint(2, 8))]
            rng.shuffle(words)
            lines.append(json.dumps(dict(zip(names, (" ".join(words), ("good", "bad")[row % 2])))))
        (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


class Kind:
    """A kind of model, by its name in ``KINDS`` or ``WINDOWED``; its config lies in ``folder``."""

    def __init__(self, name, folder):
        self.name = name
        self.config, self.flags = {**KINDS, **WINDOWED}[name]
        self.path = folder / f"{name}.json"
        self.path.write_text(json.dumps(self.config))
        self.causal = self.config["model_type"] in hf_models.HFCausalLM.known
        self.kind = hf_models.HFCausalLM if self.causal else hf_models.HFSeq2Seq

    def build(self, peft="full", seed=1, **given):
        """A model in eval mode."""
        flags = {"hf_config": str(self.path), "precision": "fp32", **self.flags, **given}
        args = hf_models.HFConfig.from_namespace(argparse.Namespace(peft=peft, **flags))
        args._name = self.kind.arch
        task = types.SimpleNamespace(cfg=types.SimpleNamespace(seed=seed))
        torch.manual_seed(seed)
        return self.kind.build_model(args, task).eval()

    def base(self):
        """The state of a base model whose weights are large enough for all to matter."""
        model = self.build(seed=7)
        torch.manual_seed(7)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn(parameter.shape))
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def stock(self, state):
        """transformers' own model with the weights of ``state``, with its own attention."""
        transformers = hf_base.library()
        values = {key: value for key, value in self.config.items() if key != "model_type"}
        config = transformers.AutoConfig.for_model(self.config["model_type"], **values)
        auto = getattr(transformers, self.kind.auto)
        stock = auto.from_config(config, attn_implementation="eager")
        stock.load_state_dict({name[len("hf.") :]: t for name, t in state.items()}, strict=True)
        return stock.eval()

    def write(self, folder):
        """The folder of a base model, with a tokenizer."""
        stock = self.stock(self.base())
        stock.config.eos_token_id = 1
        stock.config.decoder_start_token_id = None if self.causal else 0
        hf_base.save(stock, folder)
        return write_tokenizer(folder)

    def write_adapter(self, path, base, peft, seed=3, **flags):
        """The adapter folder of a model on the folder ``base``, away from its start."""
        from adapter_folders import moved

        from fairseq_peft.adapters import folder as adapter_folder
        from fairseq_peft.models import folder
        from fairseq_peft.text.folder_tokenizer import FolderTokenizer

        model = moved(self.build(peft, hf_config="", hf_model=str(base), **flags), seed)
        reference = {"path": str(base), "sha256": model.base_sha256}
        tensors, described = folder.content(model, None, reference)
        tokenizer = FolderTokenizer(base)
        described.update(
            task={"_name": "causal_lm" if self.causal else "text_to_text", "labels": "good,bad"},
            tokenizer={"name": tokenizer.name, "sha256": tokenizer.sha256},
        )
        adapter_folder.write(path, tensors, described, {})
        return model

    @staticmethod
    def tokens():
        """(3, 7), the last two of one row padding."""
        tokens = torch.randint(3, VOCAB, (3, 7), generator=torch.Generator().manual_seed(2))
        tokens[1, 5:] = PAD
        return tokens

    @staticmethod
    def answers():
        """(3, 5), what the decoder of an encoder-decoder reads."""
        return torch.randint(3, VOCAB, (3, 5), generator=torch.Generator().manual_seed(3))

    def logits(self, model, tokens=None):
        """(N, V) in fp32, those of what is no padding."""
        tokens = self.tokens() if tokens is None else tokens
        if self.causal:
            return model(tokens)[0].float()[tokens.ne(PAD)]
        return model(tokens, None, self.answers()[: len(tokens)])[0].float().flatten(0, 1)

    def stock_logits(self, stock):
        """The same of transformers' own."""
        tokens = self.tokens()
        keep = tokens.ne(PAD)
        inputs = {"input_ids": tokens.masked_fill(~keep, 0), "attention_mask": keep.long()}
        if self.causal:
            return stock(**inputs).logits[keep]
        return stock(**inputs, decoder_input_ids=self.answers()).logits.flatten(0, 1)
