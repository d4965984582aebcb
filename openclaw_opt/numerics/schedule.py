"""The learning rate over the steps of a training: linear warm-up, then half a cosine down to zero.

Source: https://arxiv.org/abs/1608.03983 (cosine annealing, here without restarts).
"""

from __future__ import annotations

from math import cos, pi


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """The rate of step `step`, counted from 0: `peak` at the last of `warmup` steps, then down; 0 from step `steps` on.

    Args:
        warmup: steps of the linear rise, fewer than `steps`.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / (steps - warmup))
    return peak * (1 + cos(pi * done)) / 2
