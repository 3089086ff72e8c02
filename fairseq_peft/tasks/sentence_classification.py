"""``--task sentence_classification``: one or two sentences, any number of classes, nothing
dropped silently."""

import logging
import os

import numpy as np
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.logging import metrics
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY, FairseqTask, register_task

from fairseq_peft import scores
from fairseq_peft.criterions.sentence_classification import SentenceClassificationCriterion
from fairseq_peft.data import checks, targets
from fairseq_peft.data.buckets import bucket_batches
from fairseq_peft.data.draws import Rows, drawn_of
from fairseq_peft.data.epochs import drawn_anew
from fairseq_peft.data.sentence_dataset import SentenceDataset
from fairseq_peft.data.text_encoder import start_tokens
from fairseq_peft.errors import InputError
from fairseq_peft.fairseq_fixes import last_batch
from fairseq_peft.injection import surgery
from fairseq_peft.tasks.launch import launch, plan_updates, prepare
from fairseq_peft.tasks.options import SentenceClassificationConfig
from fairseq_peft.text.kinds import kind_of

logger = logging.getLogger(__name__)


class SentenceClassificationTask(FairseqTask):
    """Classification of sentences or sentence pairs from a folder in the layout of fairseq's
    sentence_prediction.

    What fairseq-train calls, from top to bottom; in brackets, what it does itself in between::

        setup_task                    the data's dictionary and classes
        build_model                   the launch: see launch.py
        build_criterion
        load_dataset                  each split of --valid-subset
        [the checkpoint or the base goes into the model; optimizer and schedule are built]
        load_dataset, get_batch_iterator          of --train-subset
        each epoch:
            begin_epoch               run.json is written, when the first one begins
            each update:
                train_step            once for each batch (--update-freq): the criterion's forward,
                                      which adds the methods' penalty to the loss, and backward
                [gradients are divided by the number of rows, and clipped]
                optimizer_step        the optimizer steps, then the methods' after_update
                [the schedule sets the next learning rate]
                reduce_metrics        the counts of the update
            begin_valid_epoch         the frozen tensors are compared
            each split of --valid-subset:
                get_batch_iterator
                valid_step, reduce_metrics        each batch
                post_validate         rows are counted; after the last split, the epoch's line of
                                      metrics.jsonl and the best adapter
            state_dict, leave_out     of the checkpoints that are written
            [the schedule hears how valid went]
            get_batch_iterator        of --train-subset, for the next epoch

    fairseq-validate, and whoever else loads a checkpoint, calls ``setup_task``,
    ``load_state_dict`` and ``build_model(cfg, from_checkpoint=True)``: there is no run then.

    Attributes:
        kind: ``classes``, ``labels`` or ``number``: what a row has (``scores``). The data folder
            says it.
        labels: class names in the order of the model's outputs; of numbers one name. They come from
            label/dict.txt, or from the checkpoint if one is loaded, and rows are matched to classes
            by name.
        num_reserved: positions that the methods of the model take from the text.
        max_tokens: positions that are left for the text; None until the model is built.
        planned_updates: updates that the whole run will make; 0 until the batches of the first
            epoch are made, and where the flags do not tell.
        run: the run that the launch made (``running.Run``); None if there is none.
    """

    def __init__(self, cfg, dictionary, labels, kind=scores.CLASSES):
        super().__init__(cfg)
        self.kind = kind
        self.dictionary = dictionary
        self.labels = labels
        self.num_reserved = 0
        self.max_tokens = None
        self.planned_updates = 0
        self.run = None
        # Of the batches that were asked for last: post_validate is not told which split it was.
        self._split = None
        self._validates = False

    # Set-up

    @classmethod
    def setup_task(cls, cfg, **kwargs):
        """Called first, by every program: the task of a data folder.

        Raises:
            InputError: the folder has no dictionaries, or not --num-classes classes.
        """
        dictionary = checks.load_dictionary(os.path.join(cfg.data, "input0", "dict.txt"))
        dictionary.add_symbol("<mask>")
        kind = kind_of(cfg.data)
        labels = targets.names(cfg.data, kind)
        if cfg.num_classes > 0 and cfg.num_classes != len(labels):
            raise InputError(
                f"--num-classes {cfg.num_classes}, but {cfg.data}/label/dict.txt names "
                f"{len(labels)} classes "
                f"({', '.join(labels)}). Leave the flag out or give the right data."
            )
        return cls(cfg, dictionary, labels, kind)

    def build_model(self, cfg, from_checkpoint=False):
        """Called once, after ``setup_task``: with ``from_checkpoint`` by who loads a checkpoint,
        without it by fairseq-train, for which it is the launch of a run.

        Raises:
            InputError: the architecture is not the plugin's, or what ``launch`` says.
        """
        name = getattr(cfg, "_name", None)
        kind = ARCH_MODEL_REGISTRY.get(name, MODEL_REGISTRY.get(name))
        if not all(hasattr(kind, needs) for needs in ("inject", "register_classification_head")):
            raise InputError(
                f"--arch {name} does not go with --task sentence_classification, which needs one "
                "of this plugin's architectures with a head: roberta_lora, roberta_adapter, "
                "roberta_small_full, bart_lora, ... Give one as --arch."
            )
        if from_checkpoint:
            model = self.build_classifier(cfg)
            model.accepts_base = False
        else:
            model, self.run = launch(self, cfg)
        return model

    def start(self) -> checks.Start:
        """Where training starts, from its flags."""
        return checks.start(self.cfg)

    def prepare(self, cfg):
        """Called by a sweep, before its first run: the model that a run would train, checked."""
        return prepare(self, cfg)[0]

    def build_classifier(self, cfg):
        """The model with a fresh head for ``labels``; takes note of the room for the text.

        Raises:
            InputError: prompts and prefixes leave less than 8 positions.
        """
        model = super().build_model(cfg)
        model.register_classification_head(
            self.cfg.classification_head_name, num_classes=len(self.labels), seed=self.cfg.seed
        )
        self.num_reserved = model.num_reserved
        self.max_tokens = model.longest_text
        if self.max_tokens < 8:
            raise InputError(
                f"{self.num_reserved} prompt or prefix tokens leave {self.max_tokens} of "
                f"{self.max_tokens + self.num_reserved} positions for the text. Give fewer with "
                "--prompt-num-tokens or --prefix-num-tokens."
            )
        return model

    def build_criterion(self, cfg, from_checkpoint=False):
        """Called after ``build_model``, by fairseq-train and fairseq-validate."""
        name = getattr(cfg, "_name", cfg)
        if not issubclass(CRITERION_REGISTRY.get(name, object), SentenceClassificationCriterion):
            raise InputError(
                f"--criterion {name} does not go with --task sentence_classification: give "
                "--criterion sentence_classification."
            )
        return super().build_criterion(cfg, from_checkpoint)

    # Checkpoints

    def state_dict(self):
        """Called by the trainer for each checkpoint: its entry ``task_state``."""
        state = {"labels": list(self.labels), "dictionary": checks.fingerprint(self.dictionary)}
        return state if self.kind == scores.CLASSES else {**state, "kind": self.kind}

    def load_state_dict(self, state_dict):
        """Called by who loads a checkpoint, before ``build_model``, and by the launch of a run that
        starts from one: take over its order of classes.

        Raises:
            InputError: the data has a class that the checkpoint lacks, or another dictionary.
        """
        dictionary = state_dict.get("dictionary")
        if dictionary not in (None, checks.fingerprint(self.dictionary)):
            raise InputError(
                f"{self.cfg.data}/input0/dict.txt is not the dictionary that the checkpoint was "
                "trained with: prepare the data with that one (a run's data folder has it)."
            )
        labels = state_dict.get("labels")
        if labels is None:
            return
        targets.check_kind(self.cfg.data, self.kind, state_dict.get("kind", scores.CLASSES))
        unknown = [name for name in self.labels if name not in labels]
        if unknown:
            raise InputError(
                f"{self.cfg.data} has the class {unknown[0]!r}, the checkpoint knows "
                f"{', '.join(labels)}. "
                "Give data with the classes that the checkpoint was trained on."
            )
        self.labels = list(labels)
        self.datasets.clear()

    def leave_out(self, state):
        """Called by ``checkpoints/saving.py`` with each checkpoint that is about to be written:
        the same, without what is the base's."""
        if self.run is None or self.run.base_ref is None:
            return state
        return self.run.base_ref.leave_out(state, self.run.save_dir)

    # Data

    def encode_text(self, text: str) -> list[int]:
        """Called by a model whose prompt starts from a text: its token ids, without ``<s>`` and
        ``</s>``, as the data folder's were made.

        Raises:
            InputError: the folder does not say how it reads text.
        """
        return start_tokens(text, self.cfg.data, self.dictionary)

    def load_dataset(self, split, combine=False, **kwargs):
        """Called by the launch for every split, then by fairseq again: the second call returns what
        the first one loaded.

        Raises:
            InputError: what ``checks.load_split`` says of its rows.
        """
        if split not in self.datasets:
            texts, found = checks.load_split(
                self.cfg.data, split, self.dictionary, self.labels, self.kind
            )
            of_class = found if self.kind == scores.CLASSES else np.zeros(len(found), dtype=int)
            rows = drawn_of(self.cfg, split, of_class)
            if rows is not None:
                texts, found = [Rows(text, rows) for text in texts], found[rows]
            dataset = SentenceDataset(
                texts,
                found,
                self.dictionary,
                self.max_tokens,
                begin=not self.cfg.no_init_token,
                num_reserved=self.num_reserved,
            )
            dataset.split = split
            self.datasets[split] = dataset
            logger.info(
                f"{split}: {len(dataset)} rows, {dataset.num_truncated} cut to {self.max_tokens} "
                "tokens"
            )
        return self.datasets[split]

    def get_batch_iterator(self, dataset, max_tokens=None, max_sentences=None, seed=1, **given):
        """Called for ``train`` before each epoch, and for each evaluated split at each validation:
        batches by length, drawn anew each epoch for ``train``, fixed for the other splits.

        No row is left out, so fairseq's ``--required-batch-size-multiple`` does not apply.
        """
        train = dataset.split == self.cfg.train_subset
        self._split = dataset.split

        def sampler(dataset, epoch):
            rng = np.random.default_rng([seed, epoch]) if train else None
            sizes, order_sizes = dataset.sizes, dataset.order_sizes
            return bucket_batches(sizes, max_sentences, max_tokens, rng, order_sizes)

        batches = drawn_anew(dataset, sampler, seed, **given)
        if last_batch.trains():  # train may be validated, too, in other batches
            self.planned_updates = plan_updates(self.cfg, len(batches), self.run)
        return batches

    def max_positions(self):
        """Asked for with each batch iterator, which makes nothing of it: rows are cut already."""
        return self.max_tokens

    @property
    def source_dictionary(self):
        return self.dictionary

    @property
    def target_dictionary(self):
        return self.dictionary

    # Training, in the order of the calls

    def begin_epoch(self, epoch, model):
        """Called before the first batch of an epoch."""
        if self.run:
            self.run.begin_epoch(epoch, surgery.unwrap(model))

    def optimizer_step(self, optimizer, model, update_num):
        """Called once an update, with ``update_num`` updates made, when the gradients of its
        batches are summed, divided and clipped. They are still there for the methods."""
        optimizer.step()
        surgery.unwrap(model).after_update(update_num + 1, self.planned_updates)

    def reduce_metrics(self, logging_outputs, criterion):
        """Called after each update, and after each batch of a validation: the criterion's own
        metrics, without fairseq's words-per-batch columns, and the one that chooses the best."""
        type(criterion).reduce_metrics(logging_outputs)
        if self._f1_class() is not None:
            k = self._f1_class()
            metrics.log_derived(
                self.run.best.choice.metric, lambda meters: round(scores.f1_of_class(meters, k), 6)
            )
        if self.kind == scores.NUMBER and self.run and self._validates:
            metrics.log_derived("spearman", self._spearman)

    def _spearman(self, meters):
        """Of the whole split, once the meters have all of it; NaN before. fairseq asks for it after
        each batch, too, and to choose before ``post_validate``."""
        split = self._split
        if round(float(meters[scores.SUMS].sum[0])) < len(self.datasets[split]):
            return float("nan")
        return round(scores.of_numbers(*self._answers(split))["spearman"], 6)

    def _answers(self, split):
        """What the validation that goes on has predicted of all of ``split``, and the targets."""
        return self.run.predictions.end_subset(split, self.datasets[split].targets)

    def _f1_class(self):
        """Number of the class whose F1 chooses the best validation; None if something else does."""
        name = self.run.best.choice.f1_class if self.run else None
        return None if name is None else self.labels.index(name)

    def begin_valid_epoch(self, epoch, model):
        """Called before a validation, which is at the end of each epoch, and where training
        ends."""
        self._validates = True
        if self.run:
            self.run.begin_validation(epoch, surgery.unwrap(model))

    def train_step(self, *args, **kwargs):
        """Called with each batch of training: fairseq's step."""
        self._validates = False
        return super().train_step(*args, **kwargs)

    def valid_step(self, sample, model, criterion):
        """Called with each batch of a validation: fairseq's step, and its predictions are noted."""
        result = super().valid_step(sample, model, criterion)
        if self.run:
            self.run.predictions.add(sample["id"], criterion.predicted)
        return result

    def post_validate(self, model, stats, agg):
        """Called after each split of a validation: check that every row was evaluated, warn of a
        collapse, record the split.

        Args:
            stats: what fairseq is about to print.
            agg: the meters of the split.

        Raises:
            InputError: rows were left out.
        """
        result = scores.from_meters(agg)
        expected = len(self.datasets[self._split])
        if result["num_examples"] != expected:
            raise InputError(
                f"{result['num_examples']} of the {expected} rows of {self._split!r} were "
                "evaluated. Leave out what limits validation (--max-valid-steps)."
            )
        predicted = result.pop("predicted", None)
        if predicted is not None and max(predicted) == expected:
            logger.warning(
                f"all {expected} predictions on {self._split!r} are "
                f"{self.labels[predicted.index(expected)]!r}: the model has collapsed to one class "
                "(try another learning rate, or more epochs)"
            )
        if self.run:
            result = scores.of_validation(agg, self.kind, *self._answers(self._split))
            if self._f1_class() is not None:
                k = self._f1_class()
                result[self.run.best.choice.metric] = scores.f1_of_class(agg, k)
            self.run.end_subset(self._split, result, stats["num_updates"], surgery.unwrap(model))


if "sentence_classification" not in TASK_REGISTRY:
    register_task("sentence_classification", dataclass=SentenceClassificationConfig)(
        SentenceClassificationTask
    )
