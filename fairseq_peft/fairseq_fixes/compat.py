"""Which fairseq is this? One sentence and a recipe where it is missing, broken or unsupported."""

from __future__ import annotations

RECIPE = (
    'pip install torch; pip install "setuptools<81" wheel cython numpy; '
    "pip install --no-deps --no-build-isolation fairseq-fixed==0.12.3.1; "
    "pip install hydra-core==1.3.2 omegaconf==2.3.0 cffi regex sacrebleu tqdm bitarray "
    "scikit-learn packaging"
    " (scripts/setup.sh does all of it)"
)


class BrokenFairseq(ImportError):
    """fairseq is missing or does not import."""


def broken(error: Exception) -> BrokenFairseq:
    """What to raise where importing fairseq failed with ``error``."""
    if isinstance(error, BrokenFairseq):
        return error
    return BrokenFairseq(
        f"fairseq does not import here ({type(error).__name__}: {error}). Install it with: {RECIPE}"
    )


def require_fairseq() -> None:
    """Import fairseq and check that it is one this plugin supports.

    Raises:
        ImportError: fairseq is missing, does not import, or is stock 0.12.2, whose encoder layers
            keep second copies of their weights and skip modules in eval mode.
    """
    try:
        from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
    except Exception as error:  # stock on Python 3.11: ValueError; a broken build: OSError
        raise broken(error) from error
    if "_load_from_state_dict" in vars(TransformerEncoderLayerBase):
        raise ImportError(
            "This is stock fairseq 0.12.2: in eval mode it skips the modules that adapters live "
            "in. Remove it "
            f"(pip uninstall fairseq fairseq-fixed) and install fairseq-fixed: {RECIPE}"
        )
