"""What a sentencepiece model file says of itself, for those who rebuild it elsewhere; and the same
model without regard to case."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

from fairseq_peft.errors import InputError
from fairseq_peft.text.raw_text import load_tokenizer


class SpmFile(NamedTuple):
    """The content of a model file.

    Attributes:
        scores: piece -> score, for the pieces that text is cut into, in the order of their ids.
        kind: "unigram", "bpe", "word" or "char".
        charsmap: the compiled rules of its normaliser.
        unusual: settings that differ from those of a plain model, in words.
    """

    scores: dict[str, float]
    kind: str
    charsmap: bytes
    unusual: list[str]


def read(path: Path) -> SpmFile:
    """The model file ``path``.

    Raises:
        InputError: it does not exist or is none.
    """
    load_tokenizer(path)
    from sentencepiece import sentencepiece_model_pb2 as schema

    proto = schema.ModelProto.FromString(path.read_bytes())
    kinds = schema.ModelProto.SentencePiece
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    unusual = {
        "byte fallback": trainer.byte_fallback,
        "spaces behind words": trainer.treat_whitespace_as_suffix,
        "no space before the first word": not normalizer.add_dummy_prefix,
        "spaces kept as they are": not normalizer.remove_extra_whitespaces,
        "spaces that are no part of pieces": not normalizer.escape_whitespaces,
        "pieces across spaces": any("\u2581" in piece.piece[1:] for piece in proto.pieces),
        "symbols of its own": any(piece.type == kinds.USER_DEFINED for piece in proto.pieces),
    }
    return SpmFile(
        {piece.piece: piece.score for piece in proto.pieces if piece.type == kinds.NORMAL},
        {1: "unigram", 2: "bpe", 3: "word", 4: "char"}[trainer.model_type],
        normalizer.precompiled_charsmap,
        [name for name, there in unusual.items() if there],
    )


#: Normaliser -> the one that also folds case.
FOLDING = {"nmt_nfkc": "nmt_nfkc_cf", "nfkc": "nfkc_cf"}


def fold_case(path: Path) -> bytes:
    """The model file ``path`` with a normaliser that folds case: ``Très NUL`` is read as
    ``très nul``. Pieces, ids and scores stay, so its dict.txt and its checkpoints do.

    Raises:
        InputError: it does not exist, is none, folds case already, or has rules of its own.
    """
    load_tokenizer(path)
    from sentencepiece import sentencepiece_model_pb2 as schema

    proto = schema.ModelProto.FromString(path.read_bytes())
    name = proto.normalizer_spec.name
    if name in FOLDING.values():
        raise InputError(f"{path} folds case already ({name}). Use it as it is.")
    if name not in FOLDING:
        raise InputError(
            f"{path} has the normaliser {name!r}, for which there is no "
            f"case-folding one. Those that can be changed: {', '.join(FOLDING)}."
        )
    proto.normalizer_spec.name = FOLDING[name]
    proto.normalizer_spec.precompiled_charsmap = _charsmap(FOLDING[name])
    return proto.SerializeToString()


def _charsmap(name: str) -> bytes:
    """The compiled rules that sentencepiece has under a name: they come with any model."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as schema

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a"]),
        model_writer=model,
        model_type="char",
        vocab_size=5,
        normalization_rule_name=name,
        minloglevel=2,
    )
    return schema.ModelProto.FromString(model.getvalue()).normalizer_spec.precompiled_charsmap
