"""Weights as their low-bit codes stand for them, in training: forward is rounded, the gradient passes as if it were not.

The grids are those of rounding to nearest with ranges from largest values, which `quantize` realises with the algorithms rtn
and max, so that a weight trained here rounds there to the very values it was trained with.
Source: https://arxiv.org/abs/1308.3432 (straight-through estimator).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from openclaw_opt.numerics.grid import AFFINE, grid_of
from openclaw_opt.numerics.quantization import (
    channel_amax,
    dequantize,
    dequantize_blocks,
    quantize,
    quantize_blocks,
    scale_of,
)


def rounded(weight: Tensor, kind: str, block: int | None) -> Tensor:
    """[N, K] -> the nearest values of the grid, float32.

    Args:
        kind: `int8`, `int4` or `uint4`.
        block: inputs that share a scale; None for one scale an output channel.

    Raises:
        ValueError: `block` does not divide K.
    """
    if block is None:
        amax = channel_amax(weight)
        return dequantize(quantize(weight, amax, kind), scale_of(amax, kind))
    if kind == AFFINE:
        return grid_of(weight, kind, block).rounded(weight)
    return dequantize_blocks(*quantize_blocks(weight, block, kind))


class StraightThrough(torch.autograd.Function):
    """`rounded` forward, the identity backward. As ranges are largest values, no weight is clipped."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, kind: str, block: int | None) -> Tensor:
        return rounded(weight, kind, block).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None, None


def fake_quantized(weight: Tensor, kind: str, block: int | None) -> Tensor:
    """`rounded`, with the gradient of the identity; in the dtype of `weight`."""
    made: Tensor = StraightThrough.apply(weight, kind, block)  # type: ignore[no-untyped-call]
    return made
