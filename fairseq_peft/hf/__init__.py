"""Hugging Face's side of a model: weights, configurations, tokenizers, folders of PEFT."""


def convert(checkpoint, out, dictionary=None, spm=None, *, base=None, **options) -> dict:
    """Write a fairseq checkpoint as a folder of Hugging Face's, as ``fairseq-peft to-hf`` does.

    Args:
        checkpoint: model.pt, for example, or an adapter folder with its ``base``.
        out: the folder to write, or to write over.
        dictionary, spm: dict.txt and sentencepiece model (those beside the checkpoint).
        options: ``head``, ``labels``, ``checked``, ``texts``, ``allow_other_base`` and ``trust`` of
            ``to_folder.convert``.

    Returns:
        what was written and compared: kind, labels, tensors, and the largest differences.

    Raises:
        InputError: a file cannot be used, the model has no counterpart, or the sides differ.
    """
    from pathlib import Path

    from fairseq_peft.hf import to_folder

    paths = (path and Path(path) for path in (checkpoint, out, dictionary, spm))
    return to_folder.convert(*paths, base=base and Path(base), **options)
