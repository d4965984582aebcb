"""Clip search: for each block of a weight the range that costs least at the output.

For a block b of K inputs in a row of W, rounding costs dᵀ·H_b·d with d = w_b − ŵ_b and H_b = Σ x_b·x_bᵀ the inputs' products
within the block (products across blocks are left out, as in AWQ's own search). Ranges from 1 down to SMALLEST of the largest
value are tried in steps of STEP. Without inputs H_b is the identity, and what is minimised is the weight's squared error.

Source: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
https://arxiv.org/abs/2306.00978 (its clip search).
"""

from __future__ import annotations

import torch
from torch import Tensor

from openclaw_opt.numerics.grid import Grid, grid_of
from openclaw_opt.numerics.quantization import blocked

STEP, SMALLEST = 0.05, 0.5
ROWS = 1024
"""Rows of W at once: bounds the memory of the search."""


def block_grams(gram: Tensor, block: int) -> Tensor:
    """[K, K] -> its diagonal blocks, float32 [K / block, block, block]."""
    count = gram.shape[0] // block
    split = gram.reshape(count, block, count, block)
    return torch.stack([split[i, :, i] for i in range(count)]).float()


def clipped_grid(weight: Tensor, kind: str, block: int, grams: Tensor | None = None) -> Grid:
    """The best grid of [N, K]; `grams` from `block_grams`, None for the weight's own squared error.

    Raises:
        ValueError: `block` does not divide K.
    """
    parts = [_search(rows, kind, block, grams) for rows in torch.split(weight.float(), ROWS)]
    zeros = [part.zero for part in parts if part.zero is not None]
    return Grid(kind, torch.cat([part.scale for part in parts]), torch.cat(zeros) if zeros else None)


def _search(rows: Tensor, kind: str, block: int, grams: Tensor | None) -> Grid:
    best = grid_of(rows, kind, block)
    least, steps = _cost(rows, best, block, grams), round((1 - SMALLEST) / STEP)
    shrink = torch.ones_like(least)
    for i in range(1, steps + 1):
        cost = _cost(rows, grid_of(rows, kind, block, 1 - i * STEP), block, grams)
        better = cost < least
        least = torch.where(better, cost, least)
        shrink = torch.where(better, torch.full_like(shrink, 1 - i * STEP), shrink)
    return grid_of(rows, kind, block, shrink)


def _cost(rows: Tensor, grid: Grid, block: int, grams: Tensor | None) -> Tensor:
    """dᵀ·H_b·d of each block: float32 [rows, K / block]."""
    difference = blocked(rows - grid.rounded(rows), block)
    if grams is None:
        return difference.square().sum(-1)
    return torch.einsum("nbi,bij,nbj->nb", difference, grams, difference)
