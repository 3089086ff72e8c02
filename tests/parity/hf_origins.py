"""Hugging Face's half of test_hf_layouts.py: ``python hf_origins.py FOLDER``, without fairseq.

FOLDER/asked.json    the pieces of a sentencepiece model with their scores, its rules, and texts
FOLDER/NAME          what this script writes: tiny models of the library's own classes, laid out as
                     published ones are
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

from hf_published import perturbed, vocabulary
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaTokenizer,
)

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "layer_norm_eps": 1e-12,
}
LABELS = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,'!?"


def word_pieces(texts: list[str]) -> dict[str, int]:
    """A vocabulary of BERT's, in its usual order: rows of no use, the five, letters, words."""
    tokens = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
    tokens += [f"##{letter}" for letter in LETTERS]
    words = (word.lower() for text in texts for word in text.split() if word.isalnum())
    return {token: row for row, token in enumerate(dict.fromkeys([*tokens, *words]))}


def byte_pairs(texts: list[str]) -> tuple[dict[str, int], list[str]]:
    """RoBERTa's layout: fairseq's five, the pieces by their frequency, rows of no use."""
    found = ByteLevelBPETokenizer()
    found.train_from_iterator(texts, vocab_size=400, min_frequency=1)
    model = json.loads(found._tokenizer.to_str())["model"]
    pieces = sorted(model["vocab"], key=lambda piece: (len(piece), piece))  # not GPT-2's order
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *pieces, "<|endoftext|>"]
    tokens += ["madeupword0000", "madeupword0001", "<mask>"]
    merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    return {token: row for row, token in enumerate(tokens)}, merges


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    asked = json.loads((folder / "asked.json").read_text())
    rules = base64.b64decode(asked["rules"])
    pieces = vocabulary("xlm-roberta", asked["pieces"])
    sentences = XLMRobertaTokenizer(vocab=pieces, _spm_precompiled_charsmap=rules)
    words = word_pieces(asked["texts"])
    bert = BertTokenizer(vocab=words, do_lower_case=True)
    cased = BertTokenizer(vocab=words, do_lower_case=False, strip_accents=False)
    pairs, merges = byte_pairs(asked["texts"])
    roberta = RobertaTokenizer(vocab=pairs, merges=[tuple(m.split(" ")) for m in merges])
    of_bert = {**SIZES, "max_position_embeddings": 64, "vocab_size": len(words)}
    of_bert["pad_token_id"] = 0
    of_roberta = {**SIZES, "max_position_embeddings": 66, "pad_token_id": 1}
    models = {
        "bert": (BertForMaskedLM(BertConfig(**of_bert)), bert, {}),
        "bert-cased": (BertForMaskedLM(BertConfig(**of_bert)), cased, {}),
        "bert-classifier": (
            BertForSequenceClassification(BertConfig(**of_bert, **LABELS)), bert, {}
        ),
        # multilingual-e5-small: positions from 0, and more rows than tokens.
        "bert-sentencepiece": (
            BertModel(BertConfig(**{**of_bert, "vocab_size": len(pieces) + 5})), sentences, {}
        ),
        "distilroberta": (
            RobertaForMaskedLM(RobertaConfig(**of_roberta, vocab_size=len(pairs))), roberta, {}
        ),
        "bge-m3": (  # an encoder alone, in several files
            XLMRobertaModel(XLMRobertaConfig(**of_roberta, vocab_size=len(pieces))),
            sentences,
            {"max_shard_size": "8KB"},
        ),
    }  # fmt: skip
    for name, (model, tokenizer, how) in models.items():
        perturbed(model).save_pretrained(folder / name, **how)
        tokenizer.save_pretrained(folder / name)
    assert len(list((folder / "bge-m3").glob("*.safetensors"))) > 1
