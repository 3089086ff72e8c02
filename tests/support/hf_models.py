"""Checkpoints for tests of conversion: a tiny RoBERTa whose every tensor reaches the logits, a
sentencepiece model, a dictionary."""

from __future__ import annotations

import argparse
import random

import adapter_folders
import torch
from fairseq.data import Dictionary
from families import BART, Roberta, Transformer
from helpers import TINY

from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.models import folder
from fairseq_peft.tasks import stock
from fairseq_peft.text import raw_text

LABELS = ["bad", "good"]
#: How people write: accents, composed and not, what no piece has, spaces of every kind.
TEXTS = [
    "un mot",
    "  deux   mots  ",
    "Été, ÉTÉ, e\u0301te\u0301",
    "l'\u0153uvre \u2014 \u00ab d'un ma\u00eetre \u00bb",
    "a\u00a0b\u2009c\td",
    "\u4f60\u597d \u4f60 \U0001f600\U0001f600 fin",
    "x" * 50,
    "1234,5 % \ufb01n \u00bd",
    "mot1 mot2\u2581mot3",
    "",
    "   ",
    "!?!",
]


def write_tokenizer(folder):
    """sentencepiece.bpe.model of 60 pieces and its dict.txt in ``folder``; the dictionary."""
    rng = random.Random(3)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("éèê,.'!12345")
    words = ["".join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(60)]
    lines = [" ".join(rng.choices(words, k=12)) for _ in range(300)]
    folder.mkdir(parents=True, exist_ok=True)
    raw_text.train_tokenizer(lines, folder, vocab_size=60)
    dictionary = Dictionary.load(str(folder / raw_text.DICT_NAME))
    dictionary.add_symbol("<mask>")
    return dictionary


def write_checkpoint(path, dictionary, num_classes=0, seed=5, **flags):
    """A checkpoint, as fairseq-train writes it, of a language model or a classifier."""
    given = {"peft": "full", **flags}
    model = Roberta(dictionary).build(head=num_classes > 0, num_classes=num_classes or 2, **given)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    known = {"_name": "roberta_small", **TINY, **flags}
    labels = {"labels": LABELS} if num_classes == len(LABELS) else {}
    return adapter_folders.save_base(
        path, model.state_dict(), cfg={"model": known}, task_state=labels
    )


def weights_of(path):
    """A checkpoint's tensors, under the names of an adapter folder."""
    return adapter_folder.renamed(torch.load(path, weights_only=False)["model"])


#: Encoder-decoder -> its class of models, flags, task, and what the task adds to the dictionary.
ENCODER_DECODERS = {
    "bart": (BART, {}, {"_name": "denoising"}, ["<mask>"]),
    "mbart": (
        BART,
        {"encoder_normalize_before": True, "no_scale_embedding": False},
        {
            **{"_name": "translation_from_pretrained_bart", "langs": "en_XX,ro_RO"},
            **{"source_lang": "en_XX", "target_lang": "ro_RO"},
        },
        ["[en_XX]", "[ro_RO]", "<mask>"],
    ),
    "m2m_100": (
        Transformer,
        {"encoder_normalize_before": True, "activation_fn": "relu"},
        {
            **{"_name": "translation_multi_simple_epoch", "langs": ["en", "fr"]},
            **{"encoder_langtok": "src", "decoder_langtok": True, "lang_pairs": "en-fr"},
            **{"source_lang": "en", "target_lang": "fr", "seed": 1},
        },
        ["__en__", "__fr__"],
    ),
}


def encoder_decoder(kind, dictionary, peft="full", seed=5, **flags):
    """A model whose every tensor is away from its start."""
    family, own, _, _ = ENCODER_DECODERS[kind]
    model = family(dictionary).build(peft, **own, **flags)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def write_encoder_decoder(folder, kind, **flags):
    """model.pt of the kind, its dict.txt and sentencepiece model in ``folder``; the model."""
    write_tokenizer(folder)
    dictionary = encoder_decoder_words(folder, kind)
    task = ENCODER_DECODERS[kind][2]
    model = encoder_decoder(kind, dictionary, **flags)
    told = {name: value for name, value in vars(model.args).items() if value is not None}
    cfg = {"model": told, "task": task}
    adapter_folders.save_base(folder / "model.pt", model.state_dict(), cfg=cfg)
    return model


def encoder_decoder_on(base, kind, peft, **flags):
    """A model on the files of ``write_encoder_decoder`` in ``base``, what it adds at its start; the
    state of its base."""
    family, own, _, _ = ENCODER_DECODERS[kind]
    state = torch.load(base / "model.pt", weights_only=False)["model"]
    model = family(encoder_decoder_words(base, kind)).build(peft, **own, **flags)
    model.load_state_dict(dict(state))
    return model, state


def write_encoder_decoder_adapter(path, base, kind, peft, generation=None, **flags):
    """The adapter folder ``path`` of a model on the files of ``write_encoder_decoder`` in ``base``,
    what trains moved; the model. ``generation`` are the flags that it keeps."""
    family, _, task, _ = ENCODER_DECODERS[kind]
    words = encoder_decoder_words(base, kind)
    model, state = encoder_decoder_on(base, kind, peft, **flags)
    adapter_folders.moved(model, seed=7)
    model.args._name = f"{family.name}_{peft.split(',')[0]}"
    reference = {"path": str(base / "model.pt"), "sha256": adapter_folder.fingerprint(state)}
    tensors, described = folder.content(model, None, reference)
    told = argparse.Namespace(**task)
    told = argparse.Namespace(source_dictionary=words, target_dictionary=words, cfg=None, args=told)
    words, copies = stock.words_of(told)
    copies[adapter_folder.TOKENIZER] = base / adapter_folder.TOKENIZER
    if generation is not None:
        described["generation"] = generation
    adapter_folder.write(path, tensors, {**described, "task": task, **words}, copies)
    return model


def encoder_decoder_words(base, kind):
    """The dictionary of a model of ``write_encoder_decoder``."""
    dictionary = Dictionary.load(str(base / raw_text.DICT_NAME))
    for word in ENCODER_DECODERS[kind][3]:
        dictionary.add_symbol(word)
    return dictionary
