"""Passes of several members, forward and backward: together if that works, else one by one.

An error belongs to the member whose own pass raises it, too; the others do not hear of it. A joint
pass that fails has changed nothing: no gradient, and nobody's random numbers.
"""

from __future__ import annotations

import logging

import torch

from fairseq_peft.sweeps.members.joint import Joint
from fairseq_peft.sweeps.members.task import Forward

logger = logging.getLogger(__name__)


def forward(requests: list[Forward], joint: Joint | None) -> list[Exception | None]:
    """Answer the requests, all of training or none; for each the error that it ended with."""
    if joint is not None:
        try:
            _score_together(requests, joint)
        except Exception as error:
            joint.possible = False
            warn(error, len(requests))
        else:
            return [None] * len(requests)
    return [_tried(_score_alone, request) for request in requests]


def backward(requests: list[Forward]) -> list[Exception | None]:
    """Add the gradients of the answered scores to the parameters' own; errors as ``forward``."""
    if all(request.joint for request in requests):
        try:
            _differentiate_together(requests)
        except Exception as error:
            warn(error, len(requests))
        else:
            return [None] * len(requests)
    return [_tried(_differentiate_alone, request) for request in requests]


def warn(error: Exception, number: int) -> None:
    """Log that a joint pass of so many members failed."""
    logger.warning(
        f"a joint pass of {number} members failed ({type(error).__name__}: {error}); they go on "
        "one by one"
    )


def _tried(function, request):
    try:
        function(request)
    except Exception as error:
        return error
    return None


def _score_together(requests, joint):
    streams = [request.start.fork() for request in requests]
    with torch.set_grad_enabled(requests[0].trains):
        scores = joint([r.tokens for r in requests], streams, requests[0].head)
    for request, own, stream in zip(requests, scores, streams):
        request.answer(own, stream, joint=True)


def _score_alone(request):
    """By the model's own pass."""
    stream = request.start.fork()
    with torch.set_grad_enabled(request.trains), stream:
        scores, _ = request.model(
            request.tokens, features_only=True, classification_head_name=request.head
        )
    request.answer(scores, stream, joint=False)


def _differentiate_together(requests):
    parameters = {id(p): p for r in requests for p in r.model.parameters() if p.requires_grad}
    parameters = list(parameters.values())
    found = torch.autograd.grad(
        [request.graph for request in requests],
        parameters,
        [request.scores.grad for request in requests],
        allow_unused=True,
    )
    for parameter, gradient in zip(parameters, found):
        if gradient is None:
            continue
        if gradient.stride() != parameter.stride():  # torch's fused AdamW would mistake its numbers
            gradient = torch.empty_like(parameter).copy_(gradient)
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def _differentiate_alone(request):
    gradient = request.scores.grad
    if request.joint:  # its graph is gone with the one that it was part of
        _score_alone(request)
    torch.autograd.backward(request.graph, gradient)
