"""A weight on the grid that costs least at the output, of those we can find: GPTQ from two grids, the better row by row, descent.

GPTQ rounds to a grid that is fixed before, and which grid serves it best is not known before: clipped ranges cost the least
where nothing makes up for the error, and full ones leave room for making up. So both are tried, and since an output's error is
its own row's, each row keeps the better one. `descent` then lowers what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openclaw_opt.numerics.clipping import block_grams, clipped_grid
from openclaw_opt.numerics.descent import descended, row_errors
from openclaw_opt.numerics.gptq import Factored, factored, rounded, without_unused
from openclaw_opt.numerics.grid import Grid, grid_of

ROWS = 2048
"""Rows of a weight at once: bounds the memory."""


@dataclass(frozen=True)
class Options:
    """What to round to and how; `gptq` and `descended` say what each means."""

    kind: str
    block: int
    damping: float = 0.01
    act_order: bool = True
    sweeps: int = 2


@dataclass(frozen=True)
class Fitted:
    """float32 [N, K] on its grid, and the damping that GPTQ needed."""

    values: Tensor
    grid: Grid
    damping: float


def fitted(weight: Tensor, gram: Tensor, options: Options, zeros: Tensor | None = None) -> Fitted:
    """Round `weight`.

    Args:
        weight: [N, K], any float.
        gram: float32 [K, K], Σ x·xᵀ over the calibration inputs, in any scale. Its memory is worked in.
        zeros: bool [N, K], weights that stay zero.

    Raises:
        NotPositive: `gram` holds NaN or infinity.
        ValueError: the block does not divide K.
    """
    blocks = block_grams(gram, options.block)
    hessian = without_unused(gram, overwrite=True)
    inputs = factored(hessian, options.damping, act_order=options.act_order)
    parts = [
        _rows(weight[at], hessian, blocks, inputs, options, None if zeros is None else zeros[at])
        for at in (slice(start, start + ROWS) for start in range(0, len(weight), ROWS))
    ]
    values, grids = torch.cat([part[0] for part in parts]), [part[1] for part in parts]
    shifts = [grid.zero for grid in grids if grid.zero is not None]
    scale = torch.cat([grid.scale for grid in grids])
    return Fitted(values, Grid(options.kind, scale, torch.cat(shifts) if shifts else None), inputs.damping)


def _rows(
    weight: Tensor, hessian: Tensor, blocks: Tensor, inputs: Factored, options: Options, zeros: Tensor | None
) -> tuple[Tensor, Grid]:
    weight = weight.float()
    grid = clipped_grid(weight, options.kind, options.block, blocks)
    values = rounded(weight, grid, inputs, zeros)
    full = grid_of(weight, options.kind, options.block)
    other = rounded(weight, full, inputs, zeros)
    better = (row_errors(weight, other, hessian) < row_errors(weight, values, hessian))[:, None]
    values = torch.where(better, other, values)
    zero = None if grid.zero is None or full.zero is None else torch.where(better, full.zero, grid.zero)
    grid = Grid(options.kind, torch.where(better, full.scale, grid.scale), zero)
    return descended(weight, values, hessian, grid, sweeps=options.sweeps, zeros=zeros)
