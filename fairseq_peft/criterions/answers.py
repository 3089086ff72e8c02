"""The loss of answers, token by token, and which label is the likeliest answer.

Shape letters: B rows, T tokens, K labels, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from fairseq.criterions import CRITERION_REGISTRY, FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics

from fairseq_peft import scores
from fairseq_peft.criterions.kinds import Classes
from fairseq_peft.criterions.on_host import on_host
from fairseq_peft.injection import surgery


def token_losses(logits, target, pad: int) -> torch.Tensor:
    """(B,) the summed negative log likelihood, in nats, of each row's target (B, T) under logits
    (B, T, V); what is ``pad`` is left out."""
    losses = F.cross_entropy(
        logits.float().transpose(1, 2), target, ignore_index=pad, reduction="none"
    )
    return losses.sum(1)


def predictions(model, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits (B, P, V) of the last P tokens, and their targets (B, P): of an encoder-decoder's
    whole answers; of a language model from where the first answer of a batch begins, for the
    vocabulary is a third of GPT-2, and most of a row is its prompt."""
    inputs, target = batch["net_input"], batch["target"]
    if "num_predicted" not in batch:
        return model(**inputs)[0], target
    number = batch["num_predicted"]
    return model(**inputs, num_logits=number)[0], target[:, -number:]


def label_losses(model, layout, prompts, labels) -> torch.Tensor:
    """(B, K) the negative log likelihood, in nats, of each label, token ids, as the whole answer to
    each prompt, with the end of the answer. A prompt is read once, however many labels there are.
    """
    model = surgery.unwrap(model)
    device = next(model.parameters()).device
    losses = torch.zeros(len(prompts), len(labels), device=device)
    for rows in model.read_together(prompts):
        tokens = layout.padded_prompts([prompts[i] for i in rows], layout.room)
        read = model.read(tokens.to(device))
        for number, ids in enumerate(labels):
            target = torch.tensor([*ids, layout.eos], device=device).expand(len(rows), -1)
            before = target[:, :-1]
            if not layout.causal:
                before = F.pad(before, (1, 0), value=layout.start)
            logits = model.logits_after(read, before)
            losses[rows, number] = token_losses(logits, target, layout.pad)
    return losses


class AnswersCriterion(FairseqCriterion):
    """Cross entropy of the answers' tokens, summed over the batch, in nats.

    Logged per batch: ``loss``, ``ntokens`` (of answers), ``nsentences``, ``num_read`` (tokens of
    prompts and answers), and in validation, where the task has labels, the counts of
    ``scores.from_counts``.

    Attributes:
        predicted: (B,) numbers of the labels of the last batch, for who records them row by row;
            None where there are none.
    """

    predicted = None

    def forward(self, model, sample, reduce=True):
        """Returns (summed loss, number of answers' tokens, logging output). The methods' penalty is
        in the loss that is minimised, not in the one that is logged."""
        pad, num_tokens, counts = self.task.layout.pad, sample["ntokens"], None
        if model.training or not self.task.label_ids:
            loss = token_losses(*predictions(model, sample), pad).sum()
        else:
            loss, counts = self.of_labels(model, sample)
        log = {
            "loss": loss.detach(),
            "ntokens": num_tokens,
            "nsentences": sample["nsentences"],
            "sample_size": num_tokens,
            "num_read": sum(len(prompt) + len(answer) + 1 for prompt, answer in sample["rows"]),
        }
        if counts is not None:
            log[scores.COUNTS] = counts
        penalty = surgery.unwrap(model).penalty() if model.training else None
        if penalty is not None:
            loss = loss + num_tokens * penalty
        return loss, num_tokens, log

    def of_labels(self, model, sample) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed loss of the answers, each of which is a label; and (3, K), the integers of
        ``scores.KINDS``: each row's answer is the label that the model finds likeliest, with the
        end of the answer."""
        labels, rows = self.task.label_ids, sample["rows"]
        losses = label_losses(model, self.task.layout, [prompt for prompt, _ in rows], labels)
        self.predicted = losses.argmin(1)
        target = [labels.index(list(answer)) for _, answer in rows]
        target = torch.tensor(target, device=losses.device)
        loss = losses.gather(1, target[:, None]).sum()
        return loss, Classes.counts(self.predicted, target, len(labels))

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        """Sum the outputs; log the loss a token, perplexity, and the scores that there are."""
        logging_outputs = on_host(logging_outputs)

        def summed(key):
            return sum(log.get(key, 0) for log in logging_outputs)

        def total(key):  # between processes fairseq sums in tensors
            return float(summed(key))

        tokens = total("sample_size")
        metrics.log_scalar("loss", total("loss") / tokens, tokens, round=6)
        metrics.log_derived("ppl", lambda meters: round(math.exp(min(meters["loss"].avg, 80)), 4))
        metrics.log_scalar(scores.ROWS, total("nsentences"), weight=1)
        metrics.log_scalar("_tokens", total("num_read"), weight=1)
        if any(scores.COUNTS in log for log in logging_outputs):
            metrics.log_scalar(scores.COUNTS, summed(scores.COUNTS), weight=1)
            for name in scores.METRICS[scores.CLASSES]:
                metrics.log_derived(name, _score(name))
        if any(scores.ROUGE_SUMS in log for log in logging_outputs):
            metrics.log_scalar(scores.ROUGE_SUMS, summed(scores.ROUGE_SUMS), weight=1)
            for name in scores.ROUGE:
                metrics.log_derived(name, _score(name))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


def _score(name):
    return lambda meters: round(scores.from_meters(meters)[name], 6)


if "answers" not in CRITERION_REGISTRY:
    register_criterion("answers", dataclass=FairseqDataclass)(AnswersCriterion)
