"""From files to what writes: the model of a checkpoint or of an adapter folder, and the task that
reads texts for it."""

from __future__ import annotations

from argparse import ArgumentParser
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
from fairseq_peft.models.hf_models import HFModel
from fairseq_peft.text import bpe, generation


class OfDictionaries:
    """A model of fairseq's, whose words are those of dictionaries.

    Attributes:
        num_cut: rows so far that were longer than the model reads.
        kept: flags of generation that hold where nothing else is said.
    """

    def __init__(self, task, model, subwords, kept):
        self.task, self.model, self.subwords = task, model, subwords
        self.kept, self.num_cut = kept, 0
        self.not_text = {task.target_dictionary.bos(), task.target_dictionary.eos()}
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

    def check(self, search: dict) -> None:
        """Raise InputError at flags of generation that this model cannot follow."""
        room = self.model.max_decoder_positions() - 1
        if search.get("min_len", 1) > room:
            raise InputError(f"min_len {search['min_len']}: this model writes {room} at most.")
        check_topk(search, len(self.task.target_dictionary))

    def search(self, **given) -> GenerationConfig:
        """fairseq's flags of generation."""
        return GenerationConfig(**given)

    def longest_answer(self, num_tokens: int, search) -> int:
        """How many tokens an answer to so many may have."""
        longest = int(search.max_len_a * num_tokens + search.max_len_b)
        return min(longest, self.model.max_decoder_positions() - 1)

    def hypotheses(self, rows, search) -> list[list[dict]]:
        """What is found for each of ``rows``, token ids, the best first; their ``longest_answer``
        is the same."""
        tokens = [torch.tensor(row) for row in rows]
        dataset = self.task.build_dataset_for_inference(tokens, [len(row) for row in rows])
        sample = dataset.collater([dataset[i] for i in range(len(rows))])
        device = next(self.model.parameters()).device
        sample["net_input"] = {
            name: value.to(device) if torch.is_tensor(value) else value
            for name, value in sample["net_input"].items()
        }
        generator = self.task.build_generator([self.model], search)
        longest = self.longest_answer(sample["net_input"]["src_tokens"].shape[1], search)
        generator.min_len = min(generator.min_len, longest)
        # Languages, of tasks that say them to the decoder.
        self.not_text |= generator.symbols_to_strip_from_output
        found = self.task.inference_step(generator, [self.model], sample)
        by_row = dict(zip(sample["id"].tolist(), found))
        return [by_row[i] for i in range(len(rows))]

    def text(self, tokens) -> str:
        """The text of token ids, which end with what ends a text."""
        words = self.task.target_dictionary
        # The last is what ends a text, such as a language.
        pieces = [words[i] for i in tokens[:-1] if i not in self.not_text]
        return " ".join(pieces) if self.subwords is None else self.subwords.decode(pieces)


class OfTokenizer:
    """A model of Hugging Face's; as ``OfDictionaries``."""

    def __init__(self, task, model, kept):
        self.task, self.model = task, model
        self.kept, self.num_cut = kept, 0

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
        task = self.task
        rows = [row or [task.layout.eos] for row in rows]
        with torch.no_grad():
            return -label_losses(self.model, task.layout, rows, task.label_ids).cpu()

    def check(self, search):
        check_topk(search, len(self.task.target_dictionary))

    def search(self, **given):
        return replace(self.task.search, **{"beam": 5, **given})

    def longest_answer(self, num_tokens, search):
        longest = int(search.max_len_a * num_tokens + search.max_len_b)
        causal = self.task.causal
        return min(longest, self.task.room - num_tokens if causal else self.model.room - 1)

    def hypotheses(self, rows, search):
        return self.task.written(self.model, rows, search)

    def text(self, tokens):
        return self.task.tokenizer.decode(tokens[:-1]).strip()  # the last is the end


def check_topk(search: dict, num_words: int) -> None:
    """Raise InputError where words are drawn from more than there are."""
    if search.get("sampling_topk", 1) > num_words:
        raise InputError(f"sampling_topk {search['sampling_topk']}: there are {num_words} words.")


def from_folder(found: AdapterFolder, base, allow_other: bool, languages=None):
    """What an adapter folder and its base make.

    Args:
        languages: ``source_lang`` and ``target_lang``, as far as they are not those that were kept.

    Raises:
        InputError: it is a classifier's, the base is missing or another, or the task knows no such
            language.
    """
    if not found.is_text:
        raise InputError(
            f"{found.folder} is a classifier's, which writes no text. Give it to fairseq-peft "
            "predict."
        )
    cfg = OmegaConf.create(finetuned.stand_in(found.description)["cfg"])
    cfg.task.data = str(found.folder)
    kept = {**found.description.get("generation", {}), **(languages or {})}
    search = generation.search_of(kept)
    languages = {name: kept[name] for name in kept if name not in search}
    if found.is_of_folder:
        check_languages(cfg.task, languages)
        return OfTokenizer(*finetuned.beside_folder(found, base, allow_other), search)
    _, model = finetuned.from_folder(
        found.folder, base and Path(base), allow_other, of_any_task=True
    )
    task = set_up(flags_of_task(cfg.task, found), languages, found.folder)
    return of_dictionaries(task, model, found.subwords(), found.folder, search)


def flags_of_task(own, found: AdapterFolder):
    """The flags of the task that an adapter folder tells, with the task's defaults where it has
    kept nothing, and its dictionaries."""
    if own._name in tasks.TASK_DATACLASS_REGISTRY:
        return own
    parser = ArgumentParser(allow_abbrev=False, add_help=False)
    tasks.TASK_REGISTRY[own._name].add_args(parser)
    flags, _ = parser.parse_known_args([str(found.folder)])
    vars(flags).update(OmegaConf.to_container(own), task=own._name)
    if hasattr(flags, "source_dict"):  # of many languages, whose dictionaries are one
        for side in ("source", "target"):
            file = found.folder / found.description["dictionaries"][side]["file"]
            setattr(flags, f"{side}_dict", str(file))
    return flags


def set_up(flags, languages: dict, place):
    """The task of ``flags`` that reads and writes ``languages``.

    Raises:
        InputError: it must be told which, or does not know them.
    """
    check_languages(flags, languages)
    for name, value in languages.items():
        setattr(flags, name, value)
    for name in generation.LANGUAGES:
        if getattr(flags, name, "") is None:
            raise InputError(
                f"{place} is of a model of several languages. Which? Give --source-lang and "
                "--target-lang."
            )
    try:
        return tasks.setup_task(flags)
    except ValueError as error:  # of a language
        raise InputError(f"{place}: {error}.") from error
    except FileNotFoundError as error:
        raise InputError(
            f"{place} has no {Path(error.filename).name}, so it knows no such language. Give "
            "--source-lang and --target-lang as in training, or leave them out."
        ) from error


def check_languages(flags, languages: dict) -> None:
    """Raise InputError where the task of ``flags`` reads and writes one language, and another is
    wanted."""
    for name, value in languages.items():
        if getattr(flags, "langs", None) is None and value != getattr(flags, name, None):
            raise InputError(
                f"--{name.replace('_', '-')} {value} would be ignored: the task {flags._name} of "
                "this model has no languages to choose from. Leave it out."
            )


def of_dictionaries(task, model, subwords, place, kept):
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
    return OfDictionaries(task, model, subwords, kept)


def from_checkpoint(path, data, languages: dict):
    """What a checkpoint makes that holds the whole model, or finds its base, or a folder of Hugging
    Face's; ``languages`` as in ``from_folder``.

    Raises:
        InputError: there is none, or it needs what is not there.
    """
    if Path(path).is_dir():
        for name, value in {"data": data, **languages}.items():
            if value is not None:
                raise InputError(
                    f"--{name.replace('_', '-')} {value} would be ignored: {path} is a folder of "
                    "Hugging Face's. Leave it out."
                )
        return OfTokenizer(*finetuned.plain_of_folder(Path(path)), {})
    finetuned.check_file(Path(path))
    # In fp32, as beside an adapter folder: "auto" would be another precision on another machine.
    overrides = {**languages, "precision": "fp32"}
    if data is not None:
        overrides["data"] = str(data)
    try:
        models, cfg, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], overrides)
    except (OSError, AssertionError, KeyError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise InputError(
            f"{path} cannot answer by itself ({reason}). Give an adapter that was trained on it "
            "(--adapter NAME=DIR), or a checkpoint that was trained and the folder of its data, "
            "with its dictionaries."
        ) from error
    (model,) = models
    if isinstance(model, HFModel):
        return OfTokenizer(task, model.eval(), kept_by(model))
    place = Path(str(data or cfg.task.data).split(":")[0])
    return of_dictionaries(task, model.eval(), bpe.find(place), place, kept_by(model))


def kept_by(model) -> dict:
    """The flags of generation of the run that a checkpoint is of."""
    args = getattr(model, "args", None)  # which not all models of stock fairseq have
    given = getattr(args, "generation", None)
    return generation.search_of(generation.parse(given)) if given else {}


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
