"""fairseq's ``cross_entropy`` and ``label_smoothed_cross_entropy`` for this plugin's decoders: the
same loss, log and gradient, without a tensor of all tokens times all words
(``layers/word_losses.py``)."""

from __future__ import annotations

import functools

import torch
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion

from fairseq_peft.injection import surgery


def install() -> None:
    """Let the two compute in parts where they can; once."""
    for kind in (CrossEntropyCriterion, LabelSmoothedCrossEntropyCriterion):
        if not hasattr(kind.forward, "__wrapped__"):
            kind.forward = _forward(kind, kind.forward)


def can(kind: type, criterion, model, reduce: bool) -> bool:
    """Whether ``criterion``, of fairseq's ``kind``, can work in parts on ``model``.

    Others, which are made of it, may read the logits; around a model of several processes only the
    whole forward pass may be called; fp16 needs a scaled loss before it rounds.
    """
    if type(criterion) is not kind or surgery.unwrap(model) is not model or not reduce:
        return False
    projection = getattr(getattr(model, "decoder", None), "output_projection", None)
    return (
        hasattr(projection, "word_losses")
        and projection.weight.dtype == torch.float32
        and projection.half_dtype in (None, torch.bfloat16)
        and not getattr(criterion, "report_accuracy", False)
        and not torch.is_autocast_enabled(projection.weight.device.type)
    )


def _forward(kind, original):
    @functools.wraps(original)
    def forward(self, model, sample, reduce=True):
        if not can(kind, self, model, reduce):
            return original(self, model, sample, reduce)
        features = model(**sample["net_input"], features_only=True)[0]
        target = sample["target"]
        skipped = getattr(self, "ignore_prefix_size", 0)
        features, chosen = features[:, skipped:], target[:, skipped:]
        loss, nll = model.decoder.output_projection.word_losses(
            features.reshape(-1, features.shape[-1]),
            chosen.reshape(-1),
            self.padding_idx,
            getattr(self, "eps", 0.0),
        )
        size = target.size(0) if self.sentence_avg else sample["ntokens"]
        log = {
            "loss": loss.data,
            "ntokens": sample["ntokens"],
            "nsentences": target.size(0),
            "sample_size": size,
        }
        if kind is LabelSmoothedCrossEntropyCriterion:
            log["nll_loss"] = nll.data
        return loss, size, log

    return forward
