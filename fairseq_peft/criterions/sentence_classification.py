"""Cross entropy, and counts per class as exact integers from which every metric follows."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fairseq.criterions import CRITERION_REGISTRY, FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II

from fairseq_peft import scores
from fairseq_peft.injection import surgery


@dataclass
class SentenceClassificationCriterionConfig(FairseqDataclass):
    classification_head_name: str = II("task.classification_head_name")


class SentenceClassificationCriterion(FairseqCriterion):
    """Cross entropy in nats, summed over the batch.

    Logged per batch: ``loss``, ``ntokens``, ``nsentences``, and for each class k the integers
    ``_hit_k`` (rows of k predicted as k), ``_target_k``, ``_predicted_k``. A leading underscore
    keeps them out of fairseq's log lines.

    fairseq calls ``forward`` for each batch of training and of validation, divides the gradients of
    an update by the sum of its rows, and hands the logging outputs of an update, or of a batch of
    validation, to ``reduce_metrics``.

    Attributes:
        predicted: (B,) class ids of the last batch, for who records them row by row.
    """

    def __init__(self, task, classification_head_name):
        super().__init__(task)
        self.classification_head_name = classification_head_name

    def forward(self, model, sample, reduce=True):
        """Returns (summed loss, number of rows, logging output).

        In training, the methods' penalty joins the loss that is minimised, not the one that is
        logged: times the number of rows, because fairseq divides by it.
        """
        logits, _ = model(
            **sample["net_input"],
            features_only=True,
            classification_head_name=self.classification_head_name,
        )
        target = sample["target"]
        loss = F.cross_entropy(logits.float(), target, reduction="sum")
        num_classes = logits.shape[-1]
        self.predicted = predicted = logits.detach().argmax(-1)
        counts = torch.stack(
            [
                torch.bincount(labels, minlength=num_classes)
                for labels in (target[predicted == target], target, predicted)
            ]
        ).tolist()
        logging_output = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": target.numel(),
        }
        for kind, values in zip(scores.KINDS, counts):
            logging_output.update({f"_{kind}_{k}": value for k, value in enumerate(values)})
        penalty = surgery.unwrap(model).penalty() if model.training else None
        if penalty is not None:
            loss = loss + target.numel() * penalty
        return loss, target.numel(), logging_output

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        """Sum the outputs and log loss, accuracy, macro-F1 and MCC."""

        def total(key):  # between processes fairseq sums in tensors
            return float(sum(log.get(key, 0) for log in logging_outputs))

        rows = total("sample_size")
        metrics.log_scalar("loss", total("loss") / rows, rows, round=6)
        metrics.log_scalar("_tokens", total("ntokens"), weight=1)
        num_classes = scores.num_classes(logging_outputs[0])
        for kind in scores.KINDS:
            for k in range(num_classes):
                metrics.log_scalar(f"_{kind}_{k}", total(f"_{kind}_{k}"), weight=1)

        def derived(name):
            return lambda meters: round(scores.from_meters(meters)[name], 6)

        for name in ("accuracy", "macro_f1", "mcc"):
            metrics.log_derived(name, derived(name))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


if "sentence_classification" not in CRITERION_REGISTRY:
    register_criterion("sentence_classification", dataclass=SentenceClassificationCriterionConfig)(
        SentenceClassificationCriterion
    )
