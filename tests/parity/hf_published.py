"""Hugging Face's half of test_hf_published.py: ``python hf_published.py FOLDER``, without fairseq.

FOLDER/asked.json          the pieces of a sentencepiece model with their scores, its rules, texts
FOLDER/NAME                what this script writes: tiny models of the library's own classes, with
                           vocabularies laid out as camembert-base's and xlm-roberta-base's
FOLDER/NAME.safetensors    token ids (B, T) with padding, features, logits
FOLDER/told.json           of each: the tokens in the order of their ids, and those of the texts
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    CamembertConfig,
    CamembertForMaskedLM,
    CamembertTokenizer,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaForSequenceClassification,
    XLMRobertaTokenizer,
)

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
LABELS = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
#: NAME -> classes, the ids of <s> and </s>, more of its configuration.
MODELS = {
    "camembert": (CamembertForMaskedLM, CamembertConfig, CamembertTokenizer, 5, 6, {}),
    "xlm-roberta": (XLMRobertaForMaskedLM, XLMRobertaConfig, XLMRobertaTokenizer, 0, 2, {}),
    "classifier": (
        XLMRobertaForSequenceClassification, XLMRobertaConfig, XLMRobertaTokenizer, 0, 2, LABELS
    ),
}  # fmt: skip


def vocabulary(name: str, pieces: list) -> list:
    """The tokens and scores of a published vocabulary; ``pieces`` begin with <unk>, <s>, </s>."""
    pieces = [tuple(piece) for piece in pieces]
    if name == "camembert":  # <s> and </s> lie among the pieces; 0, 2 and 4 are not used
        first = [("<s>NOTUSED", 0.0), ("<pad>", 0.0), ("</s>NOTUSED", 0.0), ("<unk>", 0.0)]
        return [*first, ("<unk>NOTUSED", -100.0), *pieces[1:], ("<mask>", 0.0)]
    first = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    return [*first, *pieces[3:], ("<mask>", 0.0)]


def perturbed(model):
    """Every tensor away from its start, the segment embedding too."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def batch(num_rows: int, begin: int, end: int) -> torch.Tensor:
    """(4, 40) token ids, any of them, between <s> and </s>, padded at the right."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(2, num_rows, (4, 40), generator=generator)
    tokens[0, 1:4] = torch.tensor([0, 2, 4])
    tokens[:, 0] = begin
    for row, length in zip(tokens, (40, 25, 9, 3)):
        row[length - 1] = end
        row[length:] = 1
    return tokens


def older(folder: Path, model) -> None:
    """The folder as older versions of the library wrote it."""
    state = model.state_dict()
    state["roberta.embeddings.position_ids"] = torch.arange(514)[None]
    state["roberta.pooler.dense.weight"] = torch.randn(16, 16)
    state["roberta.pooler.dense.bias"] = torch.randn(16)
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    asked = json.loads((folder / "asked.json").read_text())
    rules = base64.b64decode(asked["rules"])
    told = {}
    for name, (kind, config, reader, begin, end, more) in MODELS.items():
        vocab = vocabulary(name, asked["pieces"])
        ends = {"bos_token_id": begin, "eos_token_id": end}
        model = perturbed(kind(config(vocab_size=len(vocab), **SIZES, **ends, **more)))
        model.save_pretrained(folder / name)
        tokenizer = reader(vocab=vocab, _spm_precompiled_charsmap=rules)
        assert (tokenizer.cls_token_id, tokenizer.sep_token_id) == (begin, end)
        assert len(tokenizer) == len(vocab)
        tokenizer.save_pretrained(folder / name)
        tokens = batch(len(vocab), begin, end)
        with torch.no_grad():
            found = model(
                input_ids=tokens, attention_mask=tokens.ne(1).long(), output_hidden_states=True
            )
        tensors = {"features": found.hidden_states[-1], "logits": found.logits}
        tensors = {key: value.contiguous() for key, value in tensors.items()}
        save_file({"tokens": tokens, **tensors}, folder / f"{name}.safetensors")
        told[name] = {
            "vocabulary": [token for token, _ in vocab],
            "texts": [
                tokenizer.convert_ids_to_tokens(tokenizer(t).input_ids) for t in asked["texts"]
            ],
        }
        if name != "xlm-roberta":
            older(folder / name, model)
    (folder / "told.json").write_text(json.dumps(told))
