"""``--task sentence_classification``: one or two sentences, any number of classes, nothing
dropped silently."""

import logging
import math
import os
from pathlib import Path

import numpy as np
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.data import iterators
from fairseq.distributed import utils as distributed_utils
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY, FairseqTask, register_task

from fairseq_peft import scores
from fairseq_peft.checkpoints import slim
from fairseq_peft.criterions.sentence_classification import SentenceClassificationCriterion
from fairseq_peft.data import checks
from fairseq_peft.data.buckets import bucket_batches
from fairseq_peft.data.sentence_dataset import SentenceDataset
from fairseq_peft.errors import InputError
from fairseq_peft.files import remove_leftovers
from fairseq_peft.injection import frozen, surgery
from fairseq_peft.models.roberta import FAMILY, HEADS
from fairseq_peft.optim.peft_adamw import check_learning_rates
from fairseq_peft.runs import log as run_log
from fairseq_peft.tasks import best_adapter, record
from fairseq_peft.tasks.options import SentenceClassificationConfig
from fairseq_peft.text import raw_text

logger = logging.getLogger(__name__)


class SentenceClassificationTask(FairseqTask):
    """Classification of sentences or sentence pairs from a folder in the layout of fairseq's
    sentence_prediction.

    Attributes:
        labels: class names in the order of the model's outputs. They come from label/dict.txt, or
            from the checkpoint if one is loaded, and rows are matched to classes by name.
    """

    def __init__(self, cfg, dictionary, labels):
        super().__init__(cfg)
        self.dictionary = dictionary
        self.labels = labels
        self.max_tokens = None
        self.num_reserved = 0
        self.planned_updates = 0
        self._run = None
        self._recorder = None
        self._guard = None
        self._base = None
        self._best = None

    # Set-up

    @classmethod
    def setup_task(cls, cfg, **kwargs):
        dictionary = checks.load_dictionary(os.path.join(cfg.data, "input0", "dict.txt"))
        dictionary.add_symbol("<mask>")
        labels = checks.class_names(
            checks.load_dictionary(os.path.join(cfg.data, "label", "dict.txt"))
        )
        if cfg.num_classes > 0 and cfg.num_classes != len(labels):
            raise InputError(
                f"--num-classes {cfg.num_classes}, but {cfg.data}/label/dict.txt names "
                f"{len(labels)} classes "
                f"({', '.join(labels)}). Leave the flag out or give the right data."
            )
        return cls(cfg, dictionary, labels)

    def build_model(self, cfg, from_checkpoint=False):
        """Build the model; for training, check everything else that training will need, too."""
        name = getattr(cfg, "_name", None)
        if not hasattr(ARCH_MODEL_REGISTRY.get(name, MODEL_REGISTRY.get(name)), "inject"):
            raise InputError(
                f"--arch {name} does not go with --task sentence_classification, which needs one "
                "of this plugin's architectures: roberta_small, roberta_base_lora, "
                "roberta_large_adapter, ... Give one as --arch."
            )
        if from_checkpoint:
            model = self._build_classifier(cfg)
            model.accepts_base = False
            return model
        checks.flags(self.cfg)
        start = checks.start(self.cfg)
        named = start.base if start.resumes else None
        state = slim.read(start.path, named) if start.path else None
        if state:
            self._adopt_labels(state, start, cfg.reset_head)
        model = self._build_classifier(cfg)
        model.accepts_base = not start.resumes
        check_learning_rates(model, getattr(self.cfg.optimizer_settings, "_name", None))
        if state:
            checks.check_start(start.path, state, model, self.dictionary, self.cfg)
        model.check_base(state["model"] if state else None)
        if not state:
            model.adopt_base()
        for split in [self.cfg.train_subset, *self.cfg.valid_subset.split(",")]:
            self.load_dataset(split)
        for line in surgery.describe(model, HEADS, f"--peft {model.setting.name}"):
            logger.info(line)
        self._run = record.describe_run(self.cfg, model, start, self.labels, self.datasets)
        if not self.cfg.no_save:
            self._best = self._best_adapter(model, start, state)
        if state and not self.cfg.full_checkpoints:
            self._base = slim.base_of_run(model, FAMILY, state, start, self.cfg.save_dir)
        return model

    def _best_adapter(self, model, start, state):
        described, copies = best_adapter.describe(self.cfg, model, self._run, self)
        base = best_adapter.base_of_run(start, state, self.cfg.save_dir)
        subsets = self.cfg.valid_subset.split(",")
        return best_adapter.BestAdapter(
            self.cfg.save_dir, described, copies, base, subsets, start.resumes
        )

    def leave_out(self, state):
        """A checkpoint as it is written (``saving.py``): without what is the base's."""
        return self._base.leave_out(state, self.cfg.save_dir) if self._base else state

    def _build_classifier(self, cfg):
        model = super().build_model(cfg)
        model.register_classification_head(
            self.cfg.classification_head_name, num_classes=len(self.labels), seed=self.cfg.seed
        )
        self.num_reserved = model.num_reserved
        self.max_tokens = model.max_positions() - self.num_reserved
        if self.max_tokens < 8:
            raise InputError(
                f"{self.num_reserved} prompt or prefix tokens leave {self.max_tokens} of "
                f"{model.max_positions()} positions for the text. Give fewer with "
                "--prompt-num-tokens or --prefix-num-tokens."
            )
        return model

    def build_criterion(self, cfg, from_checkpoint=False):
        name = getattr(cfg, "_name", cfg)
        if not issubclass(CRITERION_REGISTRY.get(name, object), SentenceClassificationCriterion):
            raise InputError(
                f"--criterion {name} does not go with --task sentence_classification: give "
                "--criterion sentence_classification."
            )
        return super().build_criterion(cfg, from_checkpoint)

    def state_dict(self):
        return {"labels": list(self.labels), "dictionary": checks.fingerprint(self.dictionary)}

    def load_state_dict(self, state_dict):
        """Take over the checkpoint's order of classes.

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
        unknown = [name for name in self.labels if name not in labels]
        if unknown:
            raise InputError(
                f"{self.cfg.data} has the class {unknown[0]!r}, the checkpoint knows "
                f"{', '.join(labels)}. "
                "Give data with the classes that the checkpoint was trained on."
            )
        self.labels = list(labels)
        self.datasets.clear()

    def _adopt_labels(self, state, start, reset_head):
        """Where training starts from a head, its classes keep their outputs, by name."""
        saved = state.get("task_state") or {}
        head = f"{HEADS}{self.cfg.classification_head_name}.out_proj.weight"
        if head not in state["model"] or (reset_head and not start.resumes):
            saved = {key: value for key, value in saved.items() if key != "labels"}
        labels = saved.get("labels")
        if labels is not None and set(labels) != set(self.labels):
            raise InputError(
                f"The head of {start.path} knows {len(labels)} classes ({', '.join(labels)}), "
                f"{self.cfg.data} has {len(self.labels)} ({', '.join(self.labels)}). Pass "
                "--reset-head to start a fresh head, or give another checkpoint."
            )
        self.load_state_dict(saved)

    # Data

    def encode_text(self, text: str) -> list[int]:
        """Token ids of ``text``, without ``<s>`` and ``</s>``, as the data folder's were made.

        Raises:
            InputError: the folder has no sentencepiece model.
        """
        path = Path(self.cfg.data) / raw_text.MODEL_NAME
        if not path.is_file():
            raise InputError(
                f"{path} does not exist: without the sentencepiece model of the data, the text of "
                "--prompt-init-text has no tokens. Copy it there (scripts/prepare_data.sh does), "
                "or give --prompt-init vocab."
            )
        pieces = raw_text.load_tokenizer(path).encode(text, out_type=str)
        # fairseq cuts at any Unicode space, and so does the data folder.
        return [self.dictionary.index(piece) for piece in " ".join(pieces).split()]

    def load_dataset(self, split, combine=False, **kwargs):
        """Load a split; a second call returns the same one."""
        if split not in self.datasets:
            texts, targets = checks.load_split(self.cfg.data, split, self.dictionary, self.labels)
            dataset = SentenceDataset(
                texts,
                targets,
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

    def get_batch_iterator(
        self,
        dataset,
        max_tokens=None,
        max_sentences=None,
        seed=1,
        num_shards=1,
        shard_id=0,
        num_workers=0,
        epoch=1,
        data_buffer_size=0,
        skip_remainder_batch=False,
        **unused,
    ):
        """Batches by length: drawn anew each epoch for ``train``, fixed for the other splits.

        No row is left out, so fairseq's ``--required-batch-size-multiple`` does not apply.
        """
        train = dataset.split == self.cfg.train_subset
        self._split = dataset.split

        def sampler(dataset, epoch):
            rng = np.random.default_rng([seed, epoch]) if train else None
            sizes, order_sizes = dataset.sizes, dataset.order_sizes
            return bucket_batches(sizes, max_sentences, max_tokens, rng, order_sizes)

        batches = iterators.EpochBatchIterator(
            dataset=dataset,
            collate_fn=dataset.collater,
            batch_sampler=sampler,
            seed=seed,
            num_shards=num_shards,
            shard_id=shard_id,
            num_workers=num_workers,
            epoch=epoch,
            buffer_size=data_buffer_size,
            skip_remainder_batch=skip_remainder_batch,
        )
        if train:
            self.planned_updates = self._plan(len(batches))
        return batches

    def _plan(self, num_batches) -> int:
        """Updates that the whole run will make, as far as the flags tell; 0 if they do not."""
        epochs, updates = self.cfg.max_epoch, self.cfg.max_update
        planned = [updates] if updates > 0 else []
        if epochs > 0:
            frequency = self.cfg.update_freq
            each = [frequency[min(epoch, len(frequency) - 1)] for epoch in range(epochs)]
            planned.append(sum(math.ceil(num_batches / freq) for freq in each))
        return min(planned, default=0)

    def optimizer_step(self, optimizer, model, update_num):
        """Step, then let the methods look at the gradients and their schedules."""
        optimizer.step()
        surgery.unwrap(model).after_update(update_num + 1, self.planned_updates)

    def max_positions(self):
        return self.max_tokens

    @property
    def source_dictionary(self):
        return self.dictionary

    @property
    def target_dictionary(self):
        return self.dictionary

    # Metrics

    def reduce_metrics(self, logging_outputs, criterion):
        """The criterion's own metrics, without fairseq's words-per-batch columns."""
        type(criterion).reduce_metrics(logging_outputs)

    def begin_epoch(self, epoch, model):
        if self.cfg.verify_frozen and self._guard is None:
            self._guard_frozen(surgery.unwrap(model))
        if self._recorder is None and self._run and distributed_utils.get_global_rank() == 0:
            remove_leftovers(self.cfg.save_dir, "checkpoint*", "run.json")
            log = run_log.RunLog(self.cfg.save_dir, self._run)
            self._recorder = record.EpochRecorder(log, self.cfg.valid_subset.split(","))
        if self._recorder:
            self._recorder.begin_epoch(epoch)

    def _guard_frozen(self, model):
        """Take note of the frozen tensors; on a resumed run, compare them with its beginning.

        Raises:
            RuntimeError: they are others than those that the run began with.
        """
        self._guard = frozen.Guard(model)
        recorded = self._run.get("frozen_sha256")
        if recorded not in (None, self._guard.sha256):
            raise RuntimeError(
                f"{self._guard}, but {self.cfg.save_dir}/run.json says that the run began with "
                f"{recorded[:12]}: checkpoint_last.pt holds another base, or frozen tensors were "
                "changed. Start again from the base in another --save-dir."
            )
        self._run["frozen_sha256"] = self._guard.sha256
        if recorded:
            logger.info(f"{self._guard}, as at the first launch")
        elif not model.accepts_base:
            logger.info(f"{self._guard}, compared from here on: the first launch recorded none")
        else:
            logger.info(str(self._guard))

    def begin_valid_epoch(self, epoch, model):
        if self._guard:
            self._guard.check(surgery.unwrap(model))
            logger.info(f"{self._guard}, unchanged after epoch {epoch}")
        if self._recorder:
            self._recorder.begin_validation()

    def post_validate(self, model, stats, agg):
        """Check that every row was evaluated, warn of a collapse, record the subset."""
        result = scores.from_meters(agg)
        expected = len(self.datasets[self._split])
        if result["num_examples"] != expected:
            raise InputError(
                f"{result['num_examples']} of the {expected} rows of {self._split!r} were "
                "evaluated. Leave out what limits validation (--max-valid-steps)."
            )
        predicted = result.pop("predicted")
        if max(predicted) == expected:
            logger.warning(
                f"all {expected} predictions on {self._split!r} are "
                f"{self.labels[predicted.index(expected)]!r}: the model has collapsed to one class "
                "(try another learning rate, or more epochs)"
            )
        if self._recorder:
            loss = float(agg["loss"].avg)
            result = {"loss": loss, **result}
            line = self._recorder.end_subset(self._split, result, stats["num_updates"])
            if line and self._best:
                self._best.offer(surgery.unwrap(model), line)


if "sentence_classification" not in TASK_REGISTRY:
    register_task("sentence_classification", dataclass=SentenceClassificationConfig)(
        SentenceClassificationTask
    )
