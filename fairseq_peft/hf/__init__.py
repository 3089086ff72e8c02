"""Hugging Face's side of a model: weights, configurations, tokenizers, folders of PEFT."""


def convert(checkpoint, out, dictionary, spm, **options) -> dict:
    """A fairseq checkpoint as a folder of Hugging Face's (``to_folder.convert``)."""
    from pathlib import Path

    from fairseq_peft.hf import to_folder

    return to_folder.convert(Path(checkpoint), Path(out), Path(dictionary), Path(spm), **options)
