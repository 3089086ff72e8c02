"""What fine-tuning with Hugging Face's library starts from: a folder of ``to_folder.py``, with the
head and the method that a run of fairseq with the same seed starts with."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.data import checks
from fairseq_peft.errors import InputError
from fairseq_peft.files import json_of
from fairseq_peft.hf import base_model, check, peft_names, peft_write, weights
from fairseq_peft.hf import config as hf_config
from fairseq_peft.models.roberta import HEADS

#: Who draws the weights that no base has: fairseq as a run of its own does, or the library.
DRAWS = ("fairseq", "hf")
METHODS = ("full", "lora")


class Base(NamedTuple):
    """A folder of Hugging Face's, read as far as needed to build its model on either side."""

    folder: Path
    config: dict
    dictionary: object


def libraries(method: str) -> dict:
    """The versions of what training needs.

    Raises:
        InputError: a package is not installed.
    """
    import importlib

    found = {}
    for name in ("transformers", "accelerate", *(["peft"] if method != "full" else [])):
        try:
            found[name] = importlib.import_module(name).__version__
        except ImportError as error:
            raise InputError(
                f"Fine-tuning with Hugging Face needs {name}, which is not installed. Install the "
                "extra hf: pip install 'fairseq-peft[hf]'."
            ) from error
    return found


def read(folder: Path) -> Base:
    """The folder of a language model that ``fairseq-peft to-hf`` wrote.

    Raises:
        InputError: it is none.
    """
    missing = [
        name
        for name in ("config.json", "model.safetensors", adapter_folder.DICTIONARY)
        if not (folder / name).is_file()
    ]
    if missing:
        raise InputError(
            f"{folder} has no {missing[0]}. Expected a folder that fairseq-peft to-hf wrote."
        )
    try:
        config = json_of((folder / "config.json").read_bytes())
    except ValueError as error:
        raise InputError(f"{folder}/config.json is no JSON ({error}). Convert again.") from error
    hf_config.flags(config)  # of another architecture
    if hf_config.class_names(config):
        raise InputError(
            f"{folder} holds a classifier, whose head would be replaced. Give the language model "
            "that fine-tuning starts from, as fairseq-peft to-hf writes it."
        )
    dictionary = checks.load_dictionary(str(folder / adapter_folder.DICTIONARY))
    dictionary.add_symbol("<mask>")
    return Base(folder, config, dictionary)


def twin(base: Base, method: str, seed: int, num_classes: int, **knobs):
    """fairseq's model of the same sizes, whose head and method are those that a run of fairseq with
    ``seed`` starts with; its body is random and of no use.

    Args:
        knobs: the method's flags, ``lora_rank`` for example.
    """
    flags = hf_config.flags(base.config)
    flags["_name"] = base_model.size(flags) or base_model.ANY_SIZE
    model = base_model.build(flags, base.dictionary, seed=seed, peft=method, **knobs)
    model.register_classification_head(base_model.HEAD, num_classes, seed=seed)
    return model


def model(base: Base, like, labels, dropout: float, attention_dropout: float, draw: str):
    """Hugging Face's model, ready to train.

    Args:
        like: its ``twin``, which says what trains.
        labels: class names in the order of the outputs.
        draw: one of ``DRAWS``.
    """
    transformers = check.load_transformers()
    check.quiet()  # it warns of the head, which is new
    found = transformers.AutoModelForSequenceClassification.from_pretrained(
        base.folder,
        **hf_config.label_maps(labels),
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=attention_dropout,
        classifier_dropout=0.0,
    )
    # fairseq has no segments. Trained, this row would be one more bias of the embeddings.
    found.get_parameter(weights.SEGMENTS).requires_grad_(False)
    own = {name: tensor.detach() for name, tensor in like.state_dict().items()}
    if like.setting.name == "full":
        tensors = {weights.to_hf(n, base_model.HEAD): own[n] for n in own if n.startswith(HEADS)}
        if draw == "fairseq":
            wrong = found.load_state_dict(tensors, strict=False).unexpected_keys
            assert not wrong, wrong
        return found
    import peft

    settings = peft_write.of_model(like)
    settings.pop("peft_type")
    found = peft.get_peft_model(found, peft.LoraConfig(**settings))
    if draw == "fairseq":
        names = peft_names.table(like, base_model.HEAD)
        tensors = {there.name: own[name].reshape(there.shape) for name, there in names.items()}
        wrong = peft.set_peft_model_state_dict(found, tensors).unexpected_keys
        assert not wrong, wrong
    return found


def count(model) -> dict[str, int]:
    """The numbers of parameters as run.json has them, of what there is in Hugging Face's model."""
    # PEFT keeps the head that it has copied, which no one reads.
    named = [(n, p) for n, p in model.named_parameters() if ".original_module." not in n]
    trained = {n: p.numel() for n, p in named if p.requires_grad}
    head = sum(size for name, size in trained.items() if "classifier." in name)
    return {
        "trainable_parameters": sum(trained.values()),
        "method_parameters": sum(trained.values()) - head,
        "head_parameters": head,
        "total_parameters": sum(parameter.numel() for _, parameter in named),
        "task_bytes": 4 * sum(trained.values()),
    }
