"""Adapter folders of tiny models, without training."""

from __future__ import annotations

import argparse

import pytest
import torch
from families import BART, Roberta
from helpers import TINY

from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.data.checks import fingerprint
from fairseq_peft.errors import InputError
from fairseq_peft.models import folder
from fairseq_peft.tasks import stock

HEAD = "head"
#: What the folders of ``write`` hold: text is cut by sentencepiece.
FILES = (
    adapter_folder.TENSORS,
    adapter_folder.DESCRIPTION,
    adapter_folder.DICTIONARY,
    adapter_folder.TOKENIZER,
)


def base_state(dictionary, seed=11):
    """The weights of a plain model without a head."""
    model = Roberta(dictionary).build("full", seed=seed, head=False)
    return {key: value.clone() for key, value in model.state_dict().items()}


def save_base(path, state, **more):
    """A base checkpoint as fairseq's loader takes it."""
    torch.save({"model": state, "optimizer_history": [{}], "extra_state": {}, **more}, path)
    return path


def perturbed(dictionary, base, peft="lora", seed=3, **given):
    """A model on ``base`` whose trained tensors have moved from where they start."""
    model = Roberta(dictionary).build(peft, **given)
    model.load_state_dict(dict(base))
    return moved(model, seed)


def moved(model, seed):
    """``model``, with noise on all that trains."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def write(path, model, base, base_path="base.pt", tokenizer=b"a model of pieces " * 20, **more):
    """The folder ``path`` of ``model``, trained on ``base`` (None: from scratch)."""
    dictionary = model.encoder.dictionary
    reference = base and {"path": str(base_path), "sha256": adapter_folder.fingerprint(base)}
    tensors, described = folder.content(model, HEAD, reference)
    rest = {
        "labels": ["bad", "good"],
        "input": {"max_tokens": model.max_positions(), "begin": True, "num_texts": 1},
        "dictionary": {"sha256": fingerprint(dictionary), "num_rows": len(dictionary)},
        "metrics": {"subset": "valid", "accuracy": 0.75, "epoch": 2},
        "seed": 1,
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    copies = {
        "dict.txt": path.parent / "words.txt",
        adapter_folder.TOKENIZER: path.parent / "pieces",
    }
    dictionary.save(str(copies["dict.txt"]))
    copies[adapter_folder.TOKENIZER].write_bytes(tokenizer)
    adapter_folder.write(path, tensors, {**described, **rest}, copies)
    return path


def write_text(path, family, peft, seed):
    """The folder ``path`` of a model that writes text, on a base of its own: of BART, or of a
    family of Hugging Face's (``hf_families.Kind``), whose words are a tokenizer's."""
    base = moved(family.build(seed=seed), seed).state_dict()
    model = family.build(peft)
    model.load_state_dict(dict(base))
    model = moved(model, seed + 1)
    sha256 = adapter_folder.fingerprint(base)
    tensors, described = folder.content(model, None, {"path": "base", "sha256": sha256})
    if isinstance(family, BART):
        task = family.task()
        task.cfg = argparse.Namespace(_name="translation", source_lang="en", target_lang="xx")
        words, copies = stock.words_of(task)
        copies[adapter_folder.TOKENIZER] = b"a model of pieces " * 20
        flags = stock.flags_of(task)
    else:
        words, copies = {"tokenizer": {"name": "tokenizer.json", "sha256": sha256}}, {}
        flags = {"_name": "text_to_text"}
    path.parent.mkdir(parents=True, exist_ok=True)
    described.update(task=flags, **words, generation={"beam": 4}, seed=seed)
    adapter_folder.write(path, tensors, described, copies)
    return path


def refused(action, *words):
    """The sentence with which ``action`` refuses."""
    with pytest.raises(InputError) as error:
        action(*words)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


def write_base(folder, lines, vocab_size):
    """model.pt, dict.txt and a sentencepiece model of ``lines``, as small as the tests' models."""
    import sentencepiece
    from fairseq.data import Dictionary
    from fairseq.dataclass.configs import FairseqConfig
    from omegaconf import OmegaConf

    from fairseq_peft.checkpoints import finetuned

    with open(folder / "sentencepiece.bpe.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=file,
            model_type="bpe",
            vocab_size=vocab_size,
            minloglevel=2,
        )
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "sentencepiece.bpe.model"))
    words = Dictionary()
    for i in range(3, len(pieces)):
        words.add_symbol(pieces.id_to_piece(i))
    words.save(str(folder / "dict.txt"))
    words.add_symbol("<mask>")
    cfg = OmegaConf.to_container(OmegaConf.structured(FairseqConfig), enum_to_str=True)
    cfg.update(model={"_name": "roberta_small", **TINY}, task={"_name": "masked_lm"})
    finetuned.write(folder / "model.pt", {}, cfg, base_state(words))
