"""Which weights become zero, and what the others become: magnitude, Wanda and SparseGPT, unstructured and 2:4.

    magnitude   |w|, compared over the whole matrix
    wanda       |w_ij| · ‖x_j‖₂, compared within each output row
    sparsegpt   w_ij² / U_jj², compared within each stride of columns, and columns not yet gone through make up for what was
                taken; U is the upper Cholesky factor of the inverse of the inputs' damped products, as for GPTQ

2:4 leaves of every four neighbouring inputs of an output the two with the highest score, whatever the method compares
otherwise. Of equal scores the first stays. An input that is always zero has score 0, so its weights go first.

Shapes: weights [N, K], N outputs and K inputs; a mask is bool and true where the weight stays.

Sources: Sun et al., Wanda, https://arxiv.org/abs/2306.11695; Frantar and Alistarh, SparseGPT, https://arxiv.org/abs/2301.00774;
Mishra et al., the 2:4 pattern, https://arxiv.org/abs/2104.08378.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openclaw_opt.numerics.gptq import STRIDE, compensated, inverse_factor, without_unused

GROUP, LEFT = 4, 2
"""2:4: of so many neighbouring inputs so many weights are left."""


@dataclass(frozen=True)
class Sparse:
    """A weight with zeros: float32 [N, K], the mask of what stays, and the damping that was needed (0 without any)."""

    values: Tensor
    kept: Tensor
    damping: float = 0.0

    @property
    def share(self) -> float:
        """Share of the weights that are zero."""
        return zeros_share(self.values)


def by_magnitude(weight: Tensor, ratio: float | None) -> Sparse:
    """Zero the smallest weights: `ratio` of the whole matrix, or 2:4 where it is None."""
    scores = weight.float().abs()
    kept = two_of_four(scores) if ratio is None else all_but(scores.flatten()[None], ratio).view_as(scores)
    return Sparse(weight.float() * kept, kept)


def by_wanda(weight: Tensor, gram: Tensor, ratio: float | None) -> Sparse:
    """Zero `ratio` of each row (2:4 where it is None) by weight times the norm of its input.

    Args:
        gram: [K, K], Σ x·xᵀ over the calibration inputs, in any scale.
    """
    scores = weight.float().abs() * gram.diagonal().float().sqrt()
    kept = two_of_four(scores) if ratio is None else all_but(scores, ratio)
    return Sparse(weight.float() * kept, kept)


def by_sparsegpt(weight: Tensor, gram: Tensor, ratio: float | None, damping: float = 0.01) -> Sparse:
    """Zero `ratio` of each stride of columns (2:4 where it is None); the weights that are left make up for it.

    Args:
        gram: [K, K], Σ x·xᵀ over the calibration inputs, in any scale.
        damping: λ, as for GPTQ; raised while no Cholesky factor exists.

    Raises:
        NotPositive: no factor with the largest damping.
    """
    hessian, used_inputs = without_unused(gram), gram.diagonal() != 0
    factor, used = inverse_factor(hessian, damping)
    gain = used_inputs / factor.diagonal()
    kept = torch.empty(weight.shape, dtype=torch.bool)

    def column(j: int, work: Tensor) -> Tensor:
        if ratio is None and j % GROUP == 0:
            part = slice(j, j + GROUP)
            kept[:, part] = two_of_four((work[:, part] * gain[part]).abs())
        elif ratio is not None and j % STRIDE == 0:
            part = slice(j, min(j + STRIDE, work.shape[1]))
            scores = (work[:, part] * gain[part]).abs()
            kept[:, part] = all_but(scores.flatten()[None], ratio).view_as(scores)
        return work[:, j] * kept[:, j]

    values = compensated(weight, factor, column)
    return Sparse(values, kept, used)


def two_of_four(scores: Tensor) -> Tensor:
    """[N, K] -> mask of the two highest of every four neighbours.

    Raises:
        ValueError: four do not divide K.
    """
    if scores.shape[1] % GROUP:
        raise ValueError(f"groups of {GROUP} do not divide {scores.shape[1]}")
    groups = scores.reshape(-1, GROUP)
    best = groups.argsort(dim=1, descending=True, stable=True)[:, :LEFT]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, best, True).view_as(scores)


def all_but(scores: Tensor, ratio: float) -> Tensor:
    """[rows, n] -> mask without the round(ratio · n) lowest of each row."""
    gone = round(ratio * scores.shape[1])
    lowest = scores.argsort(dim=1, stable=True, descending=True)[:, scores.shape[1] - gone :]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, False)


def is_two_of_four(weight: Tensor) -> bool:
    """Has every group of four neighbouring inputs at most two weights that are not zero?"""
    if weight.shape[1] % GROUP:
        return False
    return bool((weight.reshape(-1, GROUP).count_nonzero(dim=1) <= LEFT).all())


def zeros_share(weight: Tensor) -> float:
    """Share of the elements that are zero."""
    return 1.0 - int(weight.count_nonzero()) / weight.numel()
