"""The loss of a kind of task, and exact counts from which every metric follows."""

from dataclasses import dataclass, field

import torch
from fairseq.criterions import CRITERION_REGISTRY, FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II

from fairseq_peft import scores
from fairseq_peft.criterions.kinds import KINDS
from fairseq_peft.criterions.on_host import on_host
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery


@dataclass
class SentenceClassificationCriterionConfig(FairseqDataclass):
    classification_head_name: str = II("task.classification_head_name")
    class_weights: str = field(
        default="none",
        metadata={
            "help": "what an error on a row of each class costs in training: none (all the same), "
            "balanced (rows of train / (classes * rows of the class)), or a number a class with "
            "commas between, in the order of the labels"
        },
    )


class SentenceClassificationCriterion(FairseqCriterion):
    """The loss of the task's kind, summed over the batch: cross entropy in nats for classes.

    Logged per batch: ``loss``, ``ntokens``, ``nsentences``, and the kind's counts: for classes
    ``_counts`` (3, classes), the integers of ``scores.KINDS``. One tensor: a meter for each of them
    takes fairseq a second an update at 1,000 classes. A leading underscore keeps it out of
    fairseq's log lines.

    fairseq calls ``forward`` for each batch of training and of validation, divides the gradients of
    an update by the sum of its rows, and hands the logging outputs of an update, or of a batch of
    validation, to ``reduce_metrics``.

    Attributes:
        kind: what the task makes of the model's outputs (``kinds``).
        predicted: answers of the last batch, (B,) class ids, for who records them row by row.
    """

    def __init__(self, task, classification_head_name, class_weights="none"):
        super().__init__(task)
        self.classification_head_name = classification_head_name
        self.kind = KINDS[getattr(task, "kind", scores.CLASSES)]
        if class_weights != "none" and self.kind is not KINDS[scores.CLASSES]:
            raise InputError(
                f"--class-weights {class_weights} is for rows of one class each. Leave it out."
            )
        self.class_weights, self._weights = class_weights, None
        if class_weights not in ("none", "balanced"):
            check_weights(class_weights, task.labels)

    def forward(self, model, sample, reduce=True):
        """Returns (summed loss, number of rows, logging output).

        In training, class weights and the methods' penalty change the loss that is minimised, not
        the one that is logged: the penalty times the number of rows, because fairseq divides by it.
        """
        logits, _ = model(
            **sample["net_input"],
            features_only=True,
            classification_head_name=self.classification_head_name,
        )
        target = sample["target"]
        num_rows, num_outputs = logits.shape
        loss = self.kind.loss(logits.float(), target)
        self.predicted = self.kind.answer(logits.detach())
        counts = self.kind.counts(self.predicted, target, num_outputs)
        logging_output = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": num_rows,
            self.kind.meter: counts,
        }
        if model.training and self.class_weights != "none":
            if self._weights is None or self._weights.device != logits.device:
                self._weights = self._weights_of(num_outputs).to(logits.device)
            weights = self._weights
            loss = self.kind.loss(logits.float(), target, weights)
        penalty = surgery.unwrap(model).penalty() if model.training else None
        if penalty is not None:
            loss = loss + num_rows * penalty
        return loss, num_rows, logging_output

    def _weights_of(self, num_classes):
        """The weight of each class (classes,)."""
        if self.class_weights != "balanced":
            return torch.tensor(check_weights(self.class_weights, self.task.labels))
        targets = torch.as_tensor(self.task.dataset(self.task.cfg.train_subset).targets)
        rows = torch.bincount(targets, minlength=num_classes)
        # A class without rows in train is no row's target.
        return len(targets) / (num_classes * rows.clamp(min=1))

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        """Sum the outputs and log the loss and the kind's scores."""
        logging_outputs = on_host(logging_outputs)

        def summed(key):
            return sum(log.get(key, 0) for log in logging_outputs)

        def total(key):  # between processes fairseq sums in tensors
            return float(summed(key))

        rows = total("sample_size")
        metrics.log_scalar("loss", total("loss") / rows, rows, round=6)
        metrics.log_scalar("_tokens", total("ntokens"), weight=1)
        name = next(
            name for name in KINDS if any(KINDS[name].meter in log for log in logging_outputs)
        )
        metrics.log_scalar(KINDS[name].meter, summed(KINDS[name].meter), weight=1)

        def derived(metric):
            return lambda meters: round(scores.from_meters(meters)[metric], 6)

        for metric in scores.METRICS[name]:
            if metric != "spearman":  # which needs the numbers themselves: see the task
                metrics.log_derived(metric, derived(metric))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


def check_weights(text: str, labels) -> list[float]:
    """The numbers of ``--class-weights 1,2.5``, one a class.

    Raises:
        InputError: they are no positive numbers, or not as many as classes.
    """
    try:
        weights = [float(number) for number in text.split(",")]
    except ValueError:
        weights = []
    if len(weights) != len(labels) or not all(0 < weight < float("inf") for weight in weights):
        raise InputError(
            f"--class-weights {text!r}: expected none, balanced, or {len(labels)} positive numbers "
            f"with commas between, one for each of {', '.join(labels)}."
        )
    return weights


if "sentence_classification" not in CRITERION_REGISTRY:
    register_criterion("sentence_classification", dataclass=SentenceClassificationCriterionConfig)(
        SentenceClassificationCriterion
    )
