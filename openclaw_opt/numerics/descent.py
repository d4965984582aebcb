"""Lower the output error of a rounded weight further: scales by least squares, codes by cyclic coordinate descent.

For y = W·x the error of Ŵ is tr((W − Ŵ) H (W − Ŵ)ᵀ), H = Σ x·xᵀ, a sum over rows. With E = (W − Ŵ) H, block after block:

    scale:  s ← s + c·E_b / (c·H_bb·c), c the block's codes less its zero point: the best one while all else stays
    codes:  ŵ_j ← the grid's value nearest to ŵ_j + E_j / H_jj, one column after the other

and E follows each change. Every step takes the least error along its coordinate, so the error never grows. GPTQ passes each
column once and never comes back to it; this starts where it ended.

Source: Behdin et al., "QuantEase: Optimization-based Quantization for Language Models", https://arxiv.org/abs/2309.01885
(the codes; their scales stay as they were).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from openclaw_opt.numerics.grid import Grid
from openclaw_opt.numerics.pieces import slices

STRIDE = 128
SMALLEST, LARGEST = 0.5, 2.0
"""A scale moves no further than this from where it was: few codes that are not zero say little of it."""


def descended(
    weight: Tensor, rounded: Tensor, gram: Tensor, grid: Grid, *, sweeps: int = 2, zeros: Tensor | None = None
) -> tuple[Tensor, Grid]:
    """A weight on `grid` with at most the error that `rounded` has, and that grid with its scales moved.

    Args:
        weight: [N, K], what is to be rounded.
        rounded: [N, K] of values of `grid`.
        gram: float32 [K, K], Σ x·xᵀ over the calibration inputs, in any scale; finite.
        sweeps: how often every block is looked at.
        zeros: bool [N, K], weights that stay zero.

    Returns:
        float32 [N, K], the grid. Rows whose error rounding of float32 made larger are given back as they were.
    """
    state = _State(weight.float(), rounded.float().clone(), _normal(gram), grid)
    for _ in range(sweeps):
        for block in range(grid.scale.shape[1]):
            state.move_scale(block)
            state.move_codes(block, zeros)
    worse = row_errors(weight, state.values, gram) > row_errors(weight, rounded, gram)
    state.values[worse] = rounded.float()[worse]
    return state.values, replace(grid, scale=torch.where(worse[:, None], grid.scale, state.scale))


def row_errors(weight: Tensor, rounded: Tensor, gram: Tensor) -> Tensor:
    """The squared output error of each row, float64 [N]; the sum is the layer's."""
    difference = (weight - rounded).double()
    # A matrix of inputs in float64 would weigh twice what it does: some of its columns at a time.
    parts = [((difference @ gram[:, at].double()) * difference[:, at]).sum(-1) for at in slices(gram)]
    return torch.stack(parts).sum(0)


class _State:
    """Values on the grid as they are by now, their scales, and E."""

    def __init__(self, weight: Tensor, values: Tensor, gram: Tensor, grid: Grid) -> None:
        self.values, self.gram, self.grid = values, gram, grid
        self.first, self.scale = grid.scale, grid.scale.clone()
        self.errors = (weight - values) @ gram
        self.width = weight.shape[1] // grid.scale.shape[1]

    def move_scale(self, block: int) -> None:
        at = slice(block * self.width, (block + 1) * self.width)
        old = self.scale[:, block]
        units = self.values[:, at] / old[:, None]
        curve = ((units @ self.gram[at, at]) * units).sum(-1)
        step = (units * self.errors[:, at]).sum(-1) / curve.clamp_min(torch.finfo(torch.float32).tiny)
        least, most = self.first[:, block] * SMALLEST, self.first[:, block] * LARGEST
        moved = torch.where(curve > 0, (old + step).clamp(least, most), old)
        self._put(at, units * moved[:, None])
        self.scale[:, block] = moved

    def move_codes(self, block: int, zeros: Tensor | None) -> None:
        grid = replace(self.grid, scale=self.scale)
        end = (block + 1) * self.width
        for start in range(block * self.width, end, STRIDE):
            at = slice(start, min(start + STRIDE, end))
            local, gram, values = self.errors[:, at].clone(), self.gram[at, at], self.values[:, at].clone()
            for j in range(values.shape[1]):
                if gram[j, j] <= 0:
                    continue
                best = grid.column(values[:, j] + local[:, j] / gram[j, j], block)
                if zeros is not None:
                    best = best.masked_fill(zeros[:, start + j], 0.0)
                local -= (best - values[:, j])[:, None] * gram[j]
                values[:, j] = best
            self._put(at, values)

    def _put(self, at: slice, values: Tensor) -> None:
        self.errors -= (values - self.values[:, at]) @ self.gram[at]
        self.values[:, at] = values


def _normal(gram: Tensor) -> Tensor:
    """H in units of its mean diagonal: the same minimum, and numbers that float32 holds."""
    mean = gram.diagonal().mean()
    return gram.float() / mean if float(mean) > 0 else gram.float()
