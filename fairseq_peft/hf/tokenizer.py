"""tokenizer.json of Hugging Face's, which reads text as fairseq's pieces and dictionary do.

Ids are fairseq's: ``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3, the lines of dict.txt, then
``<mask>``. Characters that the model does not know become one ``<unk>`` a run on both sides. One
thing differs: Hugging Face takes ``<s>``, ``</s>`` and the like in a text for the tokens of that
name.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fairseq_peft.errors import InputError
from fairseq_peft.text import spm_file
from fairseq_peft.text.subwords import Bert, Gpt2, Nothing, Sentencepiece, Subwords

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
MASK = "<mask>"
SPACE = "\u2581"


class Frame(NamedTuple):
    """What stands around the pieces of a text.

    Attributes:
        before, after: symbols around each text.
        named: symbols that are no pieces of text, beside ``SPECIALS``.
    """

    before: tuple[str, ...] = ("<s>",)
    after: tuple[str, ...] = ("</s>",)
    named: tuple[str, ...] = (MASK,)


ROBERTA = Frame()


def contents(
    subwords: Subwords, symbols: Sequence[str], max_positions: int, frame: Frame = ROBERTA
) -> dict:
    """File -> its content, of all that Hugging Face's library reads text with.

    Args:
        symbols: those of fairseq's dictionary, a row each, with the specials and what ``frame``
            names.

    Raises:
        InputError: the two do not belong together, or have no counterpart there.
    """
    if tuple(symbols[: len(SPECIALS)]) != SPECIALS or not set(frame.named) <= set(symbols):
        raise InputError(
            f"The dictionary begins with {', '.join(symbols[:4])} and ends with {symbols[-1]}; "
            f"expected {', '.join(SPECIALS)}, and {MASK} at the end, as fairseq's does."
        )
    told = settings(max_positions)
    if MASK not in frame.named:
        del told["mask_token"]
    if isinstance(subwords, Sentencepiece):
        model = next(iter(subwords.files.values()))
        return {"tokenizer.json": build(model, symbols, frame), "tokenizer_config.json": told}
    if isinstance(subwords, Gpt2):
        return {
            **gpt2(subwords, symbols, frame),
            "tokenizer_config.json": {
                **told,
                "tokenizer_class": "RobertaTokenizer",
                "add_prefix_space": False,
            },
        }
    if isinstance(subwords, (Bert, Nothing)):
        parts = word_pieces if isinstance(subwords, Bert) else words
        return {"tokenizer.json": parts(subwords, symbols, frame), "tokenizer_config.json": told}
    raise InputError(
        f"Text that is cut by --bpe {subwords.kind} has no counterpart among the tokenizers of "
        "Hugging Face's. Known are sentencepiece, gpt2, bert and none."
    )


def gpt2(subwords: Gpt2, symbols: Sequence[str], frame: Frame = ROBERTA) -> dict:
    """vocab.json, merges.txt and tokenizer.json of GPT-2's byte pairs. fairseq's symbols are
    numbers of encoder.json; there, the pieces themselves have fairseq's ids.

    Raises:
        InputError: a piece is not in the dictionary, which the library has no <unk> for.
    """
    names = {str(number): piece for piece, number in subwords.encoder.items()}
    vocab = {names.get(symbol, symbol): row for row, symbol in enumerate(symbols)}
    needed = {*subwords.letters, *map("".join, subwords.ranks)}
    check_pieces(subwords.files["encoder.json"], needed, vocab)
    merges = [" ".join(pair) for pair in subwords.ranks]
    words = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "vocab.json": vocab,
        "merges.txt": "".join(f"{line}\n" for line in ("#version: 0.2", *merges)),
        "tokenizer.json": {
            **_frame(symbols, frame),
            "normalizer": None,
            "pre_tokenizer": {**words, "use_regex": True},
            "decoder": {**words, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": vocab,
                "merges": merges,
            },
        },
    }


def word_pieces(subwords: Bert, symbols: Sequence[str], frame: Frame = ROBERTA) -> dict:
    """tokenizer.json of WordPiece, by BERT's rules of words.

    Raises:
        InputError: a piece is not in the dictionary: the library would look for shorter ones.
    """
    check_pieces(subwords.files["vocab.txt"], subwords.known(), symbols)
    return {
        **_frame(symbols, frame),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": not subwords.options.get("cased", False),
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


def words(subwords: Nothing, symbols: Sequence[str], frame: Frame = ROBERTA) -> dict:
    """tokenizer.json of text whose tokens stand between spaces."""
    return {
        **_frame(symbols, frame),
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "unk_token": "<unk>",
            "vocab": {symbol: row for row, symbol in enumerate(symbols)},
        },
    }


def _frame(symbols, frame) -> dict:
    """What tokenizer.json has of any kind: special tokens, and where they go."""
    special = {*SPECIALS, *frame.named}
    rows = [(row, symbol) for row, symbol in enumerate(symbols) if symbol in special]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(row, symbol) for row, symbol in rows],
        "post_processor": _template(symbols, frame),
    }


def build(model: Path, symbols: Sequence[str], frame: Frame = ROBERTA) -> dict:
    """tokenizer.json.

    Args:
        model: the sentencepiece model.
        symbols, frame: as ``contents`` takes them.

    Raises:
        InputError: the two do not belong together, or the model is of a kind that Hugging Face's
            tokenizers read otherwise.
    """
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
    words = [
        [symbol, 0.0 if symbol in frame.named else found.scores.get(symbol, least)]
        for symbol in symbols[len(SPECIALS) :]
    ]
    named = [[symbol, 0.0] for symbol in SPECIALS]
    # sentencepiece drops spaces at the ends and repeated ones, too.
    words_first = {"type": "WhitespaceSplit"}
    space = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    rules = base64.b64encode(found.charsmap).decode()
    return {
        **_frame(symbols, frame),
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": rules} if rules else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [words_first, space],
        },
        "decoder": space,
        "model": {
            "type": "Unigram",
            "unk_id": SPECIALS.index("<unk>"),
            "vocab": [*named, *words],
            "byte_fallback": False,
        },
    }


def check_pieces(model: Path | str, pieces: Iterable[str], symbols: Sequence[str]) -> None:
    """Raise InputError where a piece of the sentencepiece model ``model`` is not in fairseq's
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


def _template(symbols, frame):
    """``<s> A </s>``, and ``<s> A </s> </s> B </s>`` for a pair, as ``SentenceDataset``."""

    def special(symbol):
        return {"SpecialToken": {"id": symbol, "type_id": 0}}

    def text(name):
        return {"Sequence": {"id": name, "type_id": 0}}

    before, after = (list(map(special, part)) for part in (frame.before, frame.after))
    single = [*before, text("A"), *after]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *after, text("B"), *after],
        "special_tokens": {
            symbol: {"id": symbol, "ids": [symbols.index(symbol)], "tokens": [symbol]}
            for symbol in (*frame.before, *frame.after)
        },
    }
