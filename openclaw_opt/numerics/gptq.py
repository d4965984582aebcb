"""GPTQ: round a weight column by column, and let the columns not yet rounded make up for the error.

For y = W·x with inputs x seen in calibration, rounding W to Ŵ costs ‖(W − Ŵ)X‖² = tr((W − Ŵ) H (W − Ŵ)ᵀ), H = Σ x·xᵀ. With
U the upper Cholesky factor of (H + λ·mean(diag H)·I)⁻¹, rounding column j leaves the error e = (w_j − ŵ_j) / U_jj, and the
columns after it become w_k − e·U_jk. Updates beyond STRIDE columns are done together.

Scales and zero points are fixed before any column is changed. So `act_order`, which takes the columns with the largest H_jj
first, leaves the blocks where they are in memory. An input that is always zero (H_jj = 0) is rounded to nearest and changes
nothing else.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
https://arxiv.org/abs/2210.17323.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from openclaw_opt.numerics.grid import Grid

STRIDE = 128
LEAST_DAMPING, MOST_DAMPING = 1e-4, 1.0
Column = Callable[[int, Tensor], Tensor]
"""Column's number j and the weight [N, K] as it is by then, right up to the end of j's stride → what column j becomes, [N]."""


class NotPositive(ArithmeticError):
    """H has no Cholesky factor, however much it is damped: it holds NaN or infinity."""


@dataclass(frozen=True)
class Gptq:
    """What came out: float32 [N, K] on the grid, and the damping that was needed."""

    values: Tensor
    damping: float


@dataclass(frozen=True)
class Factored:
    """A layer's inputs as GPTQ uses them: the factor of `inverse_factor` [K, K], the columns' order [K], the damping."""

    factor: Tensor
    order: Tensor
    damping: float


def gptq(
    weight: Tensor,
    gram: Tensor,
    grid: Grid,
    *,
    damping: float = 0.01,
    act_order: bool = True,
    zeros: Tensor | None = None,
) -> Gptq:
    """Round `weight` to `grid`.

    Args:
        weight: [N, K], any float.
        gram: float32 [K, K], Σ x·xᵀ over the calibration inputs, in any scale.
        grid: scales (and zero points) of the weight.
        damping: λ. Raised tenfold while no Cholesky factor exists, at most to MOST_DAMPING.
        act_order: largest H_jj first.
        zeros: bool [N, K], weights that stay zero: the columns after them make up for what they would have taken on.

    Raises:
        NotPositive: no factor with MOST_DAMPING.
    """
    inputs = factored(without_unused(gram), damping, act_order=act_order)
    return Gptq(rounded(weight, grid, inputs, zeros), inputs.damping)


def factored(hessian: Tensor, damping: float, *, act_order: bool) -> Factored:
    """What `rounded` needs of H [K, K], float32; H is as it was afterwards, and no third matrix is beside it on the way.

    Raises what `gptq` raises."""
    if not act_order:
        factor, used = inverse_factor(hessian, damping)
        return Factored(factor, torch.arange(hessian.shape[0]), used)
    order = hessian.diagonal().argsort(descending=True, stable=True)
    hessian.copy_(hessian[order][:, order])
    factor, used = inverse_factor(hessian, damping)
    back = order.argsort()
    hessian.copy_(hessian[back][:, back])
    return Factored(factor, order, used)


def rounded(weight: Tensor, grid: Grid, inputs: Factored, zeros: Tensor | None = None) -> Tensor:
    """`weight` [N, K] on `grid`, float32; rows do not depend on each other."""
    order = inputs.order
    block = weight.shape[1] // grid.scale.shape[1]
    held = None if zeros is None else zeros[:, order]

    def column(j: int, work: Tensor) -> Tensor:
        nearest = grid.column(work[:, j], int(order[j]) // block)
        return nearest if held is None else nearest.masked_fill(held[:, j], 0.0)

    made = compensated(weight.float()[:, order], inputs.factor, column)
    return made[:, order.argsort()].contiguous()


def compensated(weight: Tensor, factor: Tensor, column: Column) -> Tensor:
    """Change one column of `weight` [N, K] after the other to what `column` says, the later ones making up for each error.

    Args:
        factor: upper Cholesky factor of the damped inverse of the inputs' products, [K, K], see `inverse_factor`.

    Returns:
        float32 [N, K] of changed columns.
    """
    work = weight.float().clone()
    made, columns = torch.empty_like(work), work.shape[1]
    for start in range(0, columns, STRIDE):
        stop = min(start + STRIDE, columns)
        errors = torch.empty_like(work[:, start:stop])
        for j in range(start, stop):
            made[:, j] = column(j, work)
            errors[:, j - start] = (work[:, j] - made[:, j]) / factor[j, j]
            work[:, j + 1 : stop] -= errors[:, j - start, None] * factor[j, j + 1 : stop]
        work[:, stop:] -= errors @ factor[start:stop, stop:]
    return made


def without_unused(gram: Tensor, *, overwrite: bool = False) -> Tensor:
    """H in units of its mean diagonal, with ones on the diagonal of unused inputs; in the memory of `gram` if it may be."""
    diagonal = gram.diagonal()
    unused = diagonal == 0
    mean = diagonal[~unused].mean() if bool((~unused).any()) else diagonal.new_ones(())
    hessian = gram.div_(mean) if overwrite and gram.dtype == torch.float32 else gram.float() / mean
    hessian[unused, unused] = 1.0
    return hessian


def inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """Upper Cholesky factor of the damped inverse, and the damping that gave one. At most two matrices beside `hessian`."""
    before = hessian.diagonal().clone()
    mean = before.mean()
    while True:
        hessian.diagonal().copy_(before + damping * mean)
        lower, failed = torch.linalg.cholesky_ex(hessian)
        hessian.diagonal().copy_(before)
        if not int(failed):
            inverse = torch.cholesky_inverse(lower)
            del lower
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            del inverse
            if not int(failed) and bool(upper.isfinite().all()):
                return upper, damping
        if damping >= MOST_DAMPING or not bool(hessian.isfinite().all()):
            raise NotPositive("the matrix of calibration inputs has no Cholesky factor")
        damping = min(MOST_DAMPING, max(damping, LEAST_DAMPING) * 10)


def output_error(weight: Tensor, rounded: Tensor, gram: Tensor) -> float:
    """tr((W − Ŵ) H (W − Ŵ)ᵀ), the squared output error summed over the inputs that `gram` is of; float64 inside."""
    difference = (weight - rounded).double()
    return float(((difference @ gram.double()) * difference).sum())
