"""A model of Hugging Face's, from a local folder or from a config with random weights.

Nothing is fetched, and no pickle is read: weights are safetensors. transformers is an extra, which
only these functions import.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from fairseq_peft.architectures.hf_configs import CONFIGS
from fairseq_peft.errors import InputError
from fairseq_peft.files import json_of

#: The attention of ``layers/hf_attention.py``, as transformers knows it.
ATTENTION = "fairseq_peft"


def library():
    """The module transformers, which knows our attention.

    Raises:
        InputError: it is not installed, or too old.
    """
    try:
        import transformers
        from transformers.masking_utils import AttentionMaskInterface, eager_mask
        from transformers.modeling_utils import AttentionInterface
    except ImportError as error:
        raise InputError(
            "--arch hf_causal_lm and hf_seq2seq need transformers 5, which is not installed. "
            "Install the extra hf: pip install 'fairseq-peft[hf]'."
        ) from error
    from fairseq_peft.layers.hf_attention import attend, mask_by

    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, mask_by(eager_mask))
    return transformers


def read_config(hf_model: str, hf_config: str):
    """The config that ``--hf-model`` or ``--hf-config`` means.

    Raises:
        InputError: neither or both are given, or there is no such config.
    """
    if bool(hf_model) == bool(hf_config):
        raise InputError(
            "Give either --hf-model with the folder of a model, or --hf-config with "
            f"{', '.join(CONFIGS)} or the path of a config.json, for random weights."
        )
    known = dict(CONFIGS.get(hf_config, {}))
    if not known:
        path = Path(hf_model) / "config.json" if hf_model else Path(hf_config)
        try:
            known = json_of(path.read_bytes())
        except (OSError, ValueError) as error:
            names = "" if hf_model else f"; names known here: {', '.join(CONFIGS)}"
            moved = "hf_model" if hf_model else "hf_config"
            raise InputError(
                f"{path} cannot be read as the config of a model ({error}). Give a folder with "
                f"config.json and model.safetensors, or a config{names}. Where a checkpoint names "
                "it, put it back there, or give --model-overrides "
                f"\"{{'{moved}': 'PATH'}}\" of fairseq-validate and fairseq-generate."
            ) from error
    kind = known.pop("model_type", None) if isinstance(known, dict) else None
    return kind, known


def build(kind: str, values: dict, folder: str, auto: str, attention: str = ATTENTION):
    """The model, in fp32.

    Args:
        kind: its model_type.
        values: the config.
        folder: where its weights are; empty for random ones.
        auto: the class of transformers that builds it, such as ``AutoModelForCausalLM``.
        attention: that of ``layers/hf_attention.py``, or one of the library's own by its name.

    Raises:
        InputError: the folder has no safetensors, or not all of the weights.
    """
    transformers = library()
    config = transformers.AutoConfig.for_model(kind, **values)
    make = getattr(transformers, auto)
    if not folder:
        return make.from_config(config, attn_implementation=attention, dtype=torch.float32)
    if not list(Path(folder).glob("*.safetensors")):
        raise InputError(
            f"{folder} has no model.safetensors; pickles (pytorch_model.bin) are not read, for "
            "they may run code. Convert it: AutoModel.from_pretrained(...).save_pretrained(...)."
        )
    with _without_progress(transformers):
        model, told = make.from_pretrained(
            folder,
            config=config,
            attn_implementation=attention,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    wrong = sorted(told["missing_keys"]) + sorted(map(str, told["mismatched_keys"]))
    if wrong:
        raise InputError(
            f"{folder} lacks weights that its config asks for, such as {wrong[0]}. Give a folder "
            "whose config.json and model.safetensors belong together."
        )
    return model


def plain(config, auto: str):
    """The library's own model of ``config``, in fp32, without anything of this package; its weights
    are to be loaded."""
    transformers = library()
    values = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    config = transformers.AutoConfig.for_model(config.model_type, **values)
    return getattr(transformers, auto).from_config(config, dtype=torch.float32)


def save(model, folder: Path) -> None:
    """Write a model of the library's own as it writes it."""
    with _without_progress(library()):
        model.save_pretrained(folder)


@contextlib.contextmanager
def _without_progress(transformers):
    """Logs and terminals have no bar from reading a few files."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
