"""``--task causal_lm`` (prompt, answer) and ``--task text_to_text`` (input, target): Hugging Face's
models (``models/hf_models.py``) answer in text, and labels are words.

    fairseq-train DATA --user-dir fairseq_peft --task text_to_text --criterion answers \\
        --arch hf_seq2seq --hf-model t5-small/ --peft lora --labels negative,positive ...

DATA has train.jsonl, valid.jsonl and so on, or .tsv. The loss is that of the answers alone.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fairseq.logging import metrics
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY, FairseqTask, register_task

from fairseq_peft import scores
from fairseq_peft.checkpoints import file as checkpoint_file
from fairseq_peft.checkpoints import start as run_start
from fairseq_peft.data import checks
from fairseq_peft.data.answers import AnswerDataset, Layout
from fairseq_peft.data.buckets import packed_batches
from fairseq_peft.data.draws import drawn_of
from fairseq_peft.data.epochs import drawn_anew
from fairseq_peft.errors import InputError
from fairseq_peft.fairseq_fixes import last_batch
from fairseq_peft.injection import surgery
from fairseq_peft.models import hf_slots
from fairseq_peft.models.hf_models import HFModel
from fairseq_peft.models.hf_search import Words
from fairseq_peft.runs import choice as choices
from fairseq_peft.tasks import launch, record
from fairseq_peft.tasks.answers_options import AnswersConfig
from fairseq_peft.tasks.answers_written import WritesAnswers
from fairseq_peft.tasks.running import Run
from fairseq_peft.text import pairs
from fairseq_peft.text.folder_tokenizer import FolderTokenizer

logger = logging.getLogger(__name__)


class AnswersTask(WritesAnswers, FairseqTask):
    """What both tasks share.

    Attributes:
        names: of the two texts of a row.
        causal: whether prompt and answer are one text.
        layout: how the model reads a row; None until it is built.
        label_ids: token ids of each label.
        planned_updates: updates that the whole run will make; 0 where its flags do not tell, and
            before the batches of the first epoch are made.
        run: the run that ``begin_run`` made; None if there is none.
    """

    names = ("", "")
    causal = False
    planned_updates = 0

    def __init__(self, cfg):
        super().__init__(cfg)
        if cfg.hf_tokenizer:  # a checkpoint finds it from wherever it is read
            cfg.hf_tokenizer = os.path.abspath(cfg.hf_tokenizer)
        self.layout = None
        self.tokenizer = None
        self.label_ids = []
        self.told = None
        self.model = None
        self.run = None
        self._split = None  # of the batches that were asked for last, for post_validate

    # Set-up

    @classmethod
    def setup_task(cls, cfg, **kwargs):
        return cls(cfg)

    def build_model(self, cfg, from_checkpoint=False):
        """The model, and with it the tokenizer and how rows are read.

        Raises:
            InputError: the model is not for this task, the tokenizer not for the model, or labels
                are not to be told apart.
        """
        if self.cfg.pack and not self.causal:
            raise InputError(
                f"--pack would be ignored by --task {self.cfg._name}, which has a source and a "
                "target: it is for causal_lm, where a row is one text. Leave it out."
            )
        name = getattr(cfg, "_name", None)
        kind = ARCH_MODEL_REGISTRY.get(name, MODEL_REGISTRY.get(name, object))
        wanted = "hf_causal_lm" if self.causal else "hf_seq2seq"
        if not issubclass(kind, HFModel) or kind.arch != wanted:
            raise InputError(
                f"--arch {name} does not go with --task {self.cfg._name}: give --arch {wanted}."
            )
        folder = self.cfg.hf_tokenizer or getattr(cfg, "hf_model", None)
        if not folder:
            raise InputError(
                "--hf-config has no tokenizer: give --hf-tokenizer with a folder that has one."
            )
        self.tokenizer = FolderTokenizer(folder)
        self.check_tokenizer()
        start = self.start()
        if start.resumes and not from_checkpoint:
            launch.adopt_precision(cfg, checkpoint_file.read(start.path))
        model = super().build_model(cfg, from_checkpoint)
        if from_checkpoint:
            model.accepts_base = False
        self.model = model
        if self.cfg.pack:
            hf_slots.check_attention(model, "packed rows")
        config = model.hf.config
        if len(self.tokenizer) > config.vocab_size:
            raise InputError(
                f"The tokenizer of {folder} has {len(self.tokenizer)} ids, the model "
                f"{config.vocab_size} rows of words: they do not belong together."
            )
        eos = config.eos_token_id
        start = getattr(config, "decoder_start_token_id", None)
        if eos is None or (start is None and not self.causal):
            raise InputError(
                "The model's config.json does not say eos_token_id, or decoder_start_token_id: "
                "answers would have no end, or no beginning. Add them."
            )
        eos = eos[0] if isinstance(eos, (list, tuple)) else eos
        self.layout = Layout(self.causal, model.pad, eos, start, model.longest_text)
        self.room = model.longest_text
        self.label_ids = self.encode_labels()
        return model

    @property
    def labels(self) -> list[str]:
        """The words that answers are to be; none where they are any text."""
        return [label.strip() for label in self.cfg.labels.split(",") if label.strip()]

    @property
    def kind(self) -> str:
        """Of the task (``scores``): with labels, answers are right or wrong."""
        return scores.CLASSES if self.labels else scores.TEXT

    def encode_labels(self) -> list[list[int]]:
        """The token ids of each label.

        Raises:
            InputError: two labels are one, or one is longer than the room for answers.
        """
        words = self.labels
        found = [self.tokenizer.encode(self.answer_text(word)) for word in words]
        for number, (word, ids) in enumerate(zip(words, found)):
            if ids in found[:number]:
                raise InputError(
                    f"--labels {words[found.index(ids)]!r} and {word!r} are the same to the "
                    f"tokenizer ({ids}). Give words that it tells apart."
                )
            if len(ids) >= self.answer_room or not ids:
                raise InputError(
                    f"--labels {word!r} has {len(ids)} tokens; there is room for "
                    f"{self.answer_room - 1}. Give more --max-answer-tokens, or another word."
                )
        if len(words) == 1:
            raise InputError(f"--labels {self.cfg.labels!r} is one label: give at least two.")
        return found

    def answer_text(self, text: str) -> str:
        """An answer as it stands behind its prompt."""
        return text

    # The run

    def start(self) -> checks.Start:
        """Where training starts; its base is the folder of the model, once that is built."""
        base = getattr(getattr(self.model, "args", None), "hf_model", None) or None
        named = run_start.chosen(self.cfg)
        resumes = named is not None and run_start.is_last(named, self.cfg.save_dir)
        return checks.Start(named, base, resumes)

    def prepare(self, cfg):
        """Called by a sweep, before its first run: the model that a run would train, checked."""
        model = self.build_model(cfg)
        self.choose()
        return model

    def choose(self) -> choices.Choice:
        """What chooses the best validation.

        Raises:
            InputError: the flags contradict each other, would leave rows out, or leave no room or
                no validation.
        """
        self.check_room()
        checks.validation(self.cfg)
        launch.check_validates(self.cfg)
        choice = launch.choose(self.cfg, self.labels, self.start(), self.kind)
        if choice.metric in scores.ROUGE and not self.cfg.eval_rouge:
            raise InputError(
                f"--best-checkpoint-metric {choice.metric} needs answers that are written in "
                "validation: give --eval-rouge, too."
            )
        return choice

    def begin_run(self, model) -> None:
        """Called by ``stock.py`` once, before fairseq-train loads a checkpoint or the first batch:
        what would fail later is refused, and from here on the run writes what a report reads. A run
        with --disable-validation writes none of it.

        Raises:
            InputError: whatever the run would fail at, or another process trains in its folder.
        """
        cfg = self.cfg
        if cfg.disable_validation:
            return
        choice, start = self.choose(), self.start()
        best = choices.Best(choice)
        if start.resumes:
            state = checkpoint_file.read(start.path)
            best = launch.best_so_far(choice, cfg.save_dir, start, state)
            launch.check_goes_on(start.path, state, cfg, best)
        launch.load_data(self)
        launch.take_folder(self, start)
        described = record.describe_run(
            cfg, model, start, self.labels, self.kind, self.datasets, choice
        )
        if start.resumes:
            record.check_same_knobs(cfg.save_dir, described)
        self.run = Run(
            save_dir=cfg.save_dir,
            subsets=cfg.valid_subset.split(","),
            described=described,
            best=best,
            plan=launch.read_plan(self, start),
            eval_test=cfg.eval_test,
        )

    def begin_epoch(self, epoch, model):
        if self.run:
            self.run.begin_epoch(epoch, surgery.unwrap(model))

    def begin_valid_epoch(self, epoch, model):
        if self.run:
            self.run.begin_validation(epoch, surgery.unwrap(model))

    def post_validate(self, model, stats, agg):
        """Called after each split of a validation, which is recorded.

        Args:
            stats: what fairseq is about to print.
            agg: the meters of the split.
        """
        if not self.run:
            return
        targets = self.datasets[self._split].targets
        found = (None, None)
        if targets is not None:
            found = self.run.predictions.end_subset(self._split, targets)
        result = scores.of_validation(agg, self.kind, *found)
        if self.run.best.choice.f1_class is not None:
            result[self.run.best.choice.metric] = self._f1(agg)
        self.run.end_subset(self._split, result, stats["num_updates"], surgery.unwrap(model))

    def _f1(self, meters) -> float:
        """F1 of the class that chooses; 0 in training, which has no answers."""
        if scores.COUNTS not in meters:
            return 0.0
        return round(
            scores.f1_of_class(meters, self.labels.index(self.run.best.choice.f1_class)), 6
        )

    # Checkpoints

    def state_dict(self):
        """The tokenizer, by name and SHA-256: what ids mean."""
        return {"tokenizer": {"name": self.tokenizer.name, "sha256": self.tokenizer.sha256}}

    def load_state_dict(self, state_dict):
        self.told = state_dict.get("tokenizer")
        if self.tokenizer is not None:
            self.check_tokenizer()

    def leave_out(self, state):
        """Called by ``checkpoints/saving.py`` with each checkpoint that is about to be written: the
        same, without what is in the folder of the base."""
        return {**state, "model": self.model.leave_out_base(state["model"])}

    def check_tokenizer(self) -> None:
        """Raise InputError where a checkpoint was trained with another tokenizer."""
        if self.told is not None and self.told["sha256"] != self.tokenizer.sha256:
            raise InputError(
                f"The checkpoint was trained with the tokenizer {self.told['name']}, SHA-256 "
                f"{self.told['sha256'][:12]}..., and {self.tokenizer.name} is another one. Give "
                "that with --hf-tokenizer."
            )

    # Data

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt that is to be answered."""
        return self.cut_prompt(self.tokenizer.encode(text))

    @property
    def answer_room(self) -> int:
        """Tokens that there is room for in an answer, with its end; those of a causal model stand
        in one text with the prompt."""
        room = self.cfg.max_answer_tokens
        return room if self.causal else min(room, self.model.room)

    @property
    def longest_answer(self) -> int:
        """Tokens that an answer may have, with its end."""
        if self.label_ids:
            return max(map(len, self.label_ids)) + 1
        return self.answer_room

    @property
    def longest_prompt(self) -> int:
        """Tokens of a prompt that are read, in training, in validation and where texts are
        answered. Behind one of a causal model the longest answer has room, whatever the row's own
        is: it would tell how long that is, and nobody knows it of a text that is to be answered.
        """
        room = min(self.cfg.max_prompt_tokens, self.room)
        return room - self.longest_answer * self.causal

    def check_room(self) -> None:
        """Raise InputError where nothing of a prompt would be read, or of an answer."""
        if self.longest_answer < 2:
            raise InputError(
                f"--max-answer-tokens {self.cfg.max_answer_tokens} leaves an answer no token "
                "beside its end. Give 2 or more."
            )
        if self.longest_prompt >= 1:
            return
        limit, ways = f"The model reads {self.room} tokens", []
        if self.cfg.max_prompt_tokens <= self.room:
            limit = f"--max-prompt-tokens {self.cfg.max_prompt_tokens}"
            ways.append("more --max-prompt-tokens")
        beside = ""
        if self.causal:
            beside = f" beside answers of {self.longest_answer}"
            ways.append("shorter --labels" if self.label_ids else "fewer --max-answer-tokens")
        raise InputError(
            f"{limit}: none is left for a prompt{beside}. Give "
            f"{' or '.join(ways) or 'a model that reads more'}."
        )

    def cut_prompt(self, tokens: list[int]) -> list[int]:
        """A prompt without what is too much at its end, as in training. Where the flags leave no
        room, of a model that no run of theirs has trained, it has half of what there is."""
        half = max(min(self.cfg.max_prompt_tokens, self.room) // 2, 1)
        return tokens[: self.longest_prompt if self.longest_prompt >= 1 else half]

    def encode_text(self, text: str) -> list[int]:
        """Called by a model whose prompt starts from a text."""
        return self.tokenizer.encode(text)

    def load_dataset(self, split, combine=False, **kwargs):
        """
        Raises:
            InputError: rows are not as they should be, an answer is no label, or there is no room.
        """
        if split in self.datasets:
            return self.datasets[split]
        self.check_room()
        path = Path(self.cfg.data)
        rows = [
            (self.tokenizer.encode(prompt), self.tokenizer.encode(self.answer_text(answer)))
            for prompt, answer in pairs.read(path, split, self.names)
        ]
        for number, (_, answer) in enumerate(rows, 1):
            if self.label_ids and answer not in self.label_ids:
                raise InputError(
                    f"{path / split}, row {number}: {self.tokenizer.decode(answer)!r} is none of "
                    f"--labels {self.cfg.labels}. Name it there, too, or leave the flag out."
                )
        pack = self.cfg.pack and split == self.cfg.train_subset
        room = self.longest_prompt, self.longest_answer
        dataset = AnswerDataset(rows, self.layout, *room, f"{path / split}", pack)
        dataset.split = split
        if self.label_ids:
            dataset.targets = np.array([self.label_ids.index(answer) for _, answer in rows])
        of_class = np.zeros(len(rows), dtype=int) if dataset.targets is None else dataset.targets
        drawn = drawn_of(self.cfg, split, of_class)
        if drawn is not None:
            dataset.keep(drawn)
        logger.info(f"{split}: {len(dataset)} rows, {dataset.num_cut} cut")
        self.datasets[split] = dataset
        return dataset

    def get_batch_iterator(self, dataset, *args, **kwargs):
        """fairseq's, with every row: a last batch that is no multiple of
        --required-batch-size-multiple would be left out, of validation, too. It tells how long the
        run will be. Rows are cut already, source and target each for itself: none is too long, and
        one that has more than --max-tokens is a batch.

        With --pack a batch of training is --batch-size rows, as without, or as many as have
        together --max-tokens tokens, for none is padded. Lengths are no matter, so each epoch draws
        its batches by seed and epoch; a row is in one of them."""
        kwargs.update(required_batch_size_multiple=1, max_positions=None)
        dataset.seed = kwargs.get("seed", 1)
        self._split = dataset.split
        if dataset.pack:
            batches = self.packed_iterator(dataset, *args, **kwargs)
        else:
            batches = super().get_batch_iterator(dataset, *args, **kwargs)
        if last_batch.trains():  # train may be validated, too, in other batches
            self.planned_updates = launch.plan_updates(self.cfg, len(batches), self.run)
        return batches

    @staticmethod
    def packed_iterator(dataset, max_tokens=None, max_sentences=None, seed=1, **given):
        """As ``get_batch_iterator``, of rows that are packed."""

        def sampler(dataset, epoch):
            rng = np.random.default_rng([seed, epoch])
            return packed_batches(dataset.sizes, max_sentences, max_tokens, rng)

        return drawn_anew(dataset, sampler, seed, **given)

    def max_positions(self):
        """Asked for with each batch iterator, which makes nothing of it."""

    @property
    def source_dictionary(self):
        return None

    @property
    def target_dictionary(self):
        """What fairseq's generator asks for; None before there is a model."""
        return None if self.layout is None else Words(self.model, self.layout.eos)

    # Training and validation

    def optimizer_step(self, optimizer, model, update_num):
        optimizer.step()
        surgery.unwrap(model).after_update(update_num + 1, self.planned_updates)

    def valid_step(self, sample, model, criterion):
        loss, sample_size, log = super().valid_step(sample, model, criterion)
        if self.run and criterion.predicted is not None:
            self.run.predictions.add(sample["id"], criterion.predicted)
        if self.cfg.eval_rouge:
            log[scores.ROUGE_SUMS] = self.rouge(sample, model)
        return loss, sample_size, log

    def reduce_metrics(self, logging_outputs, criterion):
        type(criterion).reduce_metrics(logging_outputs)
        if self.run and self.run.best.choice.f1_class is not None:
            metrics.log_derived(self.run.best.choice.metric, self._f1)


class CausalLMTask(AnswersTask):
    """Prompt and answer are one text, with a space between."""

    names = pairs.COLUMNS["causal_lm"]
    causal = True

    def answer_text(self, text):
        return text if text[:1].isspace() else f" {text}"


class TextToTextTask(AnswersTask):
    """An input and a target."""

    names = pairs.COLUMNS["text_to_text"]


for name, task in (("causal_lm", CausalLMTask), ("text_to_text", TextToTextTask)):
    if name not in TASK_REGISTRY:
        config = type(f"{task.__name__}Config", (AnswersConfig,), {})
        register_task(name, dataclass=dataclass(config))(task)
