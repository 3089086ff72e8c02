"""tokenizer.json of Hugging Face's, which reads text as one of fairseq's ``--bpe`` and its
dictionary do: sentencepiece, GPT-2's byte pairs, WordPiece, or tokens with spaces between them.

Ids are fairseq's: ``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3, the lines of dict.txt, then
``<mask>``. Characters that a sentencepiece model does not know become one ``<unk>`` a run on both
sides. One thing differs: Hugging Face takes ``<s>``, ``</s>`` and the like in a text for the tokens
of that name.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.text import spm_file
from fairseq_peft.text.raw_text import MODEL_NAME as TOKENIZER
from fairseq_peft.text.subwords import Subwords

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
MASK = "<mask>"
SPACE = "\u2581"


def build(reader: Subwords, symbols: Sequence[str]) -> dict:
    """tokenizer.json.

    Args:
        reader: cuts text into pieces.
        symbols: those of fairseq's dictionary, a row each, with the specials and ``<mask>``.

    Raises:
        InputError: the two do not belong together, or text is cut in a way that Hugging Face's
            tokenizers do not have.
    """
    if tuple(symbols[: len(SPECIALS)]) != SPECIALS or symbols[-1] != MASK:
        raise InputError(
            f"The dictionary begins with {', '.join(symbols[:4])} and ends with {symbols[-1]}; "
            f"expected {', '.join(SPECIALS)}, and {MASK} at the end, as fairseq's does."
        )
    parts = {"sentencepiece": _unigram, "gpt2": _byte_pairs, "bert": _word_pieces, "none": _words}
    if reader.kind not in parts:
        raise InputError(
            f"Text that --bpe {reader.kind} cuts cannot go there: Hugging Face's tokenizers are "
            f"written for {', '.join(parts)}."
        )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(row, symbol) for row, symbol in (*enumerate(SPECIALS), (len(symbols) - 1, MASK))
        ],
        "post_processor": _template(),
        **parts[reader.kind](reader, symbols),
    }


def _unigram(reader, symbols):
    """The parts of tokenizer.json that cut text as a sentencepiece model does."""
    model = reader.files[TOKENIZER]
    found = spm_file.read(model)
    if found.kind != "unigram" or found.unusual:
        what = found.kind if found.kind != "unigram" else f"unigram with {found.unusual[0]}"
        raise InputError(
            f"{model} cannot be converted: it is a {what} model, and only plain unigram models are "
            "known to read text alike on both sides."
        )
    check_pieces(model, found.scores, symbols)
    # A row that no piece has is nothing that text is cut into; the least of scores keeps it so.
    least = min(found.scores.values())
    words = [[symbol, found.scores.get(symbol, least)] for symbol in symbols[len(SPECIALS) : -1]]
    named = [[symbol, 0.0] for symbol in SPECIALS]
    # sentencepiece drops spaces at the ends and repeated ones, too.
    words_first = {"type": "WhitespaceSplit"}
    space = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    rules = base64.b64encode(found.charsmap).decode()
    return {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": rules} if rules else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [words_first, space],
        },
        "decoder": space,
        "model": {
            "type": "Unigram",
            "unk_id": SPECIALS.index("<unk>"),
            "vocab": [*named, *words, [MASK, 0.0]],
            "byte_fallback": False,
        },
    }


def _byte_pairs(reader, symbols):
    """The same as GPT-2's byte pairs, whose pieces are numbers in fairseq's dictionary."""
    check_pieces(_files(reader), reader.known(), symbols)
    names = {str(number): name for name, number in reader.encoder.items()}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": True},
        "decoder": {**level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {names.get(symbol, symbol): row for row, symbol in enumerate(symbols)},
            "merges": [list(pair) for pair in reader.ranks],
        },
    }


def _word_pieces(reader, symbols):
    """The same as WordPiece, by BERT's rules of words."""
    check_pieces(_files(reader), reader.known(), symbols)
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": not reader.options.get("cased", False),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "<unk>",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {symbol: row for row, symbol in enumerate(symbols)},
        },
    }


def _words(reader, symbols):
    """The same as no ``--bpe`` at all: what stands between spaces is a token."""
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "unk_token": "<unk>",
            "vocab": {symbol: row for row, symbol in enumerate(symbols)},
        },
    }


def _files(reader):
    return " and ".join(str(path) for path in reader.files.values() if path.suffix != ".json")


def check_pieces(model: Path | str, pieces: Iterable[str], symbols: Sequence[str]) -> None:
    """Raise InputError where a piece of what cuts text, in the file ``model``, is not in fairseq's
    dictionary."""
    pieces = set(pieces)
    lacking = pieces - set(symbols)
    if lacking:
        raise InputError(
            f"{len(lacking)} of the {len(pieces)} pieces of {model} are not in the "
            f"dictionary, {min(lacking)!r} for one. Give the dict.txt that was made with this "
            "model."
        )


def settings(max_positions: int) -> dict:
    """tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_positions,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": MASK,
    }


def _added(row, symbol):
    """An entry for what is not cut further; a mask takes the space before it."""
    return {
        "id": row,
        "content": symbol,
        "single_word": False,
        "lstrip": symbol == MASK,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _template():
    """``<s> A </s>``, and ``<s> A </s> </s> B </s>`` for a pair, as ``SentenceDataset``."""

    def special(symbol):
        return {"SpecialToken": {"id": symbol, "type_id": 0}}

    def text(name):
        return {"Sequence": {"id": name, "type_id": 0}}

    single = [special("<s>"), text("A"), special("</s>")]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, special("</s>"), text("B"), special("</s>")],
        "special_tokens": {
            symbol: {"id": symbol, "ids": [SPECIALS.index(symbol)], "tokens": [symbol]}
            for symbol in ("<s>", "</s>")
        },
    }
