"""Losses of knowledge distillation, as pure functions of tensors; all in nats, float32, means over tokens.

    divergence   T² · KL(softmax(teacher / T) ‖ softmax(student / T))      T² keeps the gradient's size whatever T is
    likelihood   cross-entropy of the next token
    hidden       ‖student − teacher‖² / ‖teacher‖² of a token, so that its weight does not depend on the model's scale

Sources: https://arxiv.org/abs/1503.02531 (temperature, T²), https://arxiv.org/abs/1909.10351 (hidden states, TinyBERT).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL of logits [..., vocab]; a scalar, the mean over all leading axes."""
    ours = F.log_softmax(student.float() / temperature, -1)
    theirs = F.log_softmax(teacher.float() / temperature, -1)
    each = (theirs.exp() * (theirs - ours)).sum(-1)
    return each.mean() * temperature**2


def likelihood(logits: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropy of ids[:, 1:] under logits[:, :-1]: float [batch, length, vocab] and int64 [batch, length]."""
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())


def hidden_difference(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over pairs of hidden states [..., hidden] and over tokens of the squared difference, relative to the teacher's squares.

    Raises:
        ValueError: there is no pair.
    """
    if not student:
        raise ValueError("no pair of hidden states to compare")
    return torch.stack([_relative(a, b) for a, b in zip(student, teacher, strict=True)]).mean()


def _relative(ours: Tensor, theirs: Tensor) -> Tensor:
    wide = theirs.float()
    squares = wide.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return ((ours.float() - wide).square().sum(-1) / squares).mean()
