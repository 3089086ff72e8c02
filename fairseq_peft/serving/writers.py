"""From files to what writes: the model of a checkpoint or of an adapter folder, and the task that
reads texts for it."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import torch
from fairseq import checkpoint_utils, tasks
from fairseq.dataclass.configs import GenerationConfig
from omegaconf import OmegaConf
from torch import nn

from fairseq_peft.adapters.folder import AdapterFolder
from fairseq_peft.checkpoints import finetuned
from fairseq_peft.criterions.answers import label_losses
from fairseq_peft.errors import InputError
from fairseq_peft.models import folder
from fairseq_peft.models.hf_models import HFModel
from fairseq_peft.text import bpe


class OfDictionaries:
    """A model of fairseq's, whose words are those of dictionaries.

    Attributes:
        num_cut: rows so far that were longer than the model reads.
    """

    def __init__(self, task, model, subwords):
        self.task, self.model, self.subwords = task, model, subwords
        self.num_cut = 0
        longest = model.max_positions()
        self.longest = longest if isinstance(longest, int) else longest[0]

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, with ``</s>``."""
        pieces = text.split() if self.subwords is None else self.subwords.encode([text])[0]
        words = self.task.source_dictionary
        tokens = words.encode_line(" ".join(pieces), add_if_not_exist=False).tolist()
        if len(tokens) > self.longest:
            self.num_cut += 1
            tokens = [*tokens[: self.longest - 1], tokens[-1]]
        return tokens

    @property
    def labels(self) -> list[str]:
        """The answers that there are, where there are few."""
        return []

    def search(self, **given) -> GenerationConfig:
        """fairseq's flags of generation."""
        return GenerationConfig(**given)

    def hypotheses(self, rows, search) -> list[list[dict]]:
        """What is found for each of ``rows``, token ids, the best first."""
        tokens = [torch.tensor(row) for row in rows]
        dataset = self.task.build_dataset_for_inference(tokens, [len(row) for row in rows])
        sample = dataset.collater([dataset[i] for i in range(len(rows))])
        device = next(self.model.parameters()).device
        sample["net_input"] = {
            name: value.to(device) if torch.is_tensor(value) else value
            for name, value in sample["net_input"].items()
        }
        generator = self.task.build_generator([self.model], search)
        found = self.task.inference_step(generator, [self.model], sample)
        by_row = dict(zip(sample["id"].tolist(), found))
        return [by_row[i] for i in range(len(rows))]

    def text(self, tokens) -> str:
        """The text of token ids, which end with what ends a text."""
        words = self.task.target_dictionary
        # The last is what ends a text, such as a language.
        pieces = [words[i] for i in tokens[:-1] if i not in (words.bos(), words.eos())]
        return " ".join(pieces) if self.subwords is None else self.subwords.decode(pieces)


class OfTokenizer:
    """A model of Hugging Face's; as ``OfDictionaries``."""

    def __init__(self, task, model):
        self.task, self.model = task, model
        self.num_cut = 0

    def ids(self, text):
        tokens = self.task.tokenizer.encode(text)
        kept = self.task.cut_prompt(tokens)
        self.num_cut += len(kept) < len(tokens)
        return kept

    @property
    def labels(self):
        return self.task.labels

    def label_scores(self, rows) -> torch.Tensor:
        """(B, labels) the log likelihood of each label as the answer to ``rows``, token ids; a text
        without a token is one end of a text."""
        task, longest = self.task, max(map(len, self.task.label_ids)) + 1
        room = min(task.cfg.max_prompt_tokens, task.room) - longest * task.causal
        rows = [row[:room] or [task.layout.eos] for row in rows]
        with torch.no_grad():
            return -label_losses(self.model, task.layout, rows, task.label_ids).cpu()

    def search(self, **given):
        return replace(self.task.search, **{"beam": 5, **given})

    def hypotheses(self, rows, search):
        return self.task.written(self.model, rows, search)

    def text(self, tokens):
        return self.task.tokenizer.decode(tokens).strip()


def from_folder(found: AdapterFolder, base, allow_other: bool):
    """What an adapter folder and its base make.

    Raises:
        InputError: it is a classifier's, or the base is missing or another.
    """
    if not found.is_text:
        raise InputError(
            f"{found.folder} is a classifier's, which writes no text. Give it to fairseq-peft "
            "predict."
        )
    if base is None and not found.description["complete"]:
        raise InputError(
            f"{found.folder} holds what was trained on a base, not the base. Give it (--base); it "
            f"was {found.description['base']['path']}."
        )
    cfg = OmegaConf.create(finetuned.stand_in(found.description)["cfg"])
    cfg.task.data = str(found.folder)
    if found.is_of_folder:
        task = tasks.setup_task(cfg.task)
        task.load_state_dict({"tokenizer": found.description["tokenizer"]})
        return OfTokenizer(task, folder.load_beside(found, base, task, allow_other))
    _, model = finetuned.from_folder(
        found.folder, base and Path(base), allow_other, of_any_task=True
    )
    own = cfg.task
    if own._name not in tasks.TASK_DATACLASS_REGISTRY:
        own = Namespace(**OmegaConf.to_container(own), task=own._name)
    return of_dictionaries(tasks.setup_task(own), model, found.subwords(), found.folder)


def of_dictionaries(task, model, subwords, place):
    """An ``OfDictionaries`` whose words are the model's.

    Raises:
        InputError: the dictionaries are other ones, or the task is none that answers.
    """
    for side in ("source", "target"):
        own = getattr(model, "dictionary" if side == "source" else "target_dictionary", None)
        words = getattr(task, f"{side}_dictionary")
        if own is not None and own.symbols != words.symbols:
            raise InputError(
                f"The {side} dictionary of {place} has {len(words)} words, the model's {len(own)}: "
                "they do not belong together. Give the model's own."
            )
    if type(task).build_dataset_for_inference is tasks.FairseqTask.build_dataset_for_inference:
        raise InputError(
            f"{place} is of --task {type(task).__name__}, which reads no texts to answer. Train "
            "with translation, or language_modeling."
        )
    return OfDictionaries(task, model, subwords)


def from_checkpoint(path, data):
    """What a checkpoint makes that holds the whole model, or finds its base.

    Raises:
        InputError: there is none, or it needs what is not there.
    """
    finetuned.check_file(Path(path))
    overrides = {} if data is None else {"data": str(data)}
    try:
        models, cfg, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], overrides)
    except (OSError, AssertionError) as error:
        raise InputError(f"{path} cannot be loaded: {error}. Give its data folder.") from error
    (model,) = models
    if isinstance(model, HFModel):
        return OfTokenizer(task, model.eval())
    place = Path(str(data or cfg.task.data).split(":")[0])
    return of_dictionaries(task, model.eval(), bpe.find(place), place)


def share(first: nn.Module, own: nn.Module) -> None:
    """Let ``own`` have the parameters of ``first`` where they are equal: one frozen base, once in
    memory."""
    known = dict(first.named_parameters(remove_duplicate=False))
    for path, module in own.named_modules():
        for name, value in module._parameters.items():
            other = known.get(f"{path}.{name}" if path else name)
            same = other is not None and value is not None and value.shape == other.shape
            if same and torch.equal(value, other):
                module._parameters[name] = other
