"""The grid a weight is rounded to: one scale, and for asymmetric codes one zero point, a block of inputs.

    code = clamp(round(w / scale) + zero, low, high),   ŵ = (code − zero) · scale

Symmetric grids have zero 0. A signed one of int4 lets the largest value of a block, by its sign, be the code −8: scale = −extreme / 8,
negative where that value is positive. Its steps are 7/8 of the others', and what lies beyond the code 7 on the other side is clipped.
An asymmetric block spans [min(w, 0), max(w, 0)] in 15 steps, so that 0 is always a code:
scale = (max − min) / 15, zero = round(−min / scale). A block whose span is at most DEAD has scale 1. Rounding is half to even.

Source: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html, https://arxiv.org/abs/1712.05877 (zero points), ggml's Q4_0 (signs).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openclaw_opt.numerics.pieces import joined, slices
from openclaw_opt.numerics.quantization import BOTTOM, DEAD, TOP, blocked, scale_of

ASYMMETRIC_TOP = 15.0
AFFINE = "uint4"
"""The asymmetric kind: codes 0 to 15 and a zero point a block."""


@dataclass(frozen=True)
class Grid:
    """Scales of one weight [N, K].

    Attributes:
        kind: `int4`, `int8` or `uint4`.
        scale: float32 [N, blocks].
        zero: float32 [N, blocks] of whole numbers; None for symmetric codes.
    """

    kind: str
    scale: Tensor
    zero: Tensor | None = None

    @property
    def is_signed(self) -> bool:
        """Is a scale negative?"""
        return bool((self.scale < 0).any())

    @property
    def limits(self) -> tuple[float, float]:
        """Lowest and highest code."""
        return (0.0, ASYMMETRIC_TOP) if self.kind == AFFINE else (BOTTOM[self.kind], TOP[self.kind])

    def rows(self, at: slice) -> Grid:
        """Of some rows of the weight."""
        return Grid(self.kind, self.scale[at], None if self.zero is None else self.zero[at])

    def codes(self, weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """[N, K] -> codes [N, K] in `dtype`."""
        return joined(self.rows(at)._codes(weight[at]).to(dtype) for at in slices(weight))

    def _codes(self, weight: Tensor) -> Tensor:
        scale, zero = self._spread(weight.shape[1])
        low, high = self.limits
        return ((weight.float() / scale).round() + zero).clamp(low, high)

    def values(self, codes: Tensor) -> Tensor:
        """Codes [N, K] -> what they stand for, float32 [N, K]."""
        scale, zero = self._spread(codes.shape[1])
        return (codes.float() - zero) * scale

    def rounded(self, weight: Tensor) -> Tensor:
        """[N, K] -> the nearest values of the grid, float32."""
        parts = ((self.rows(at), weight[at]) for at in slices(weight))
        return joined(grid.values(grid._codes(rows)) for grid, rows in parts)

    def column(self, weight: Tensor, block: int) -> Tensor:
        """One column [N] that lies in `block`, rounded: float32 [N]."""
        low, high = self.limits
        zero = 0.0 if self.zero is None else self.zero[:, block]
        scale = self.scale[:, block]
        return (((weight / scale).round() + zero).clamp(low, high) - zero) * scale

    def _spread(self, columns: int) -> tuple[Tensor, Tensor | float]:
        repeat = columns // self.scale.shape[1]
        zero: Tensor | float = 0.0 if self.zero is None else self.zero.repeat_interleave(repeat, 1)
        return self.scale.repeat_interleave(repeat, 1), zero


def signed_grid(weight: Tensor, block: int) -> Grid:
    """The int4 grid of [N, K] on which the largest value of each block is the code −8.

    Raises:
        ValueError: `block` does not divide K.
    """
    return Grid("int4", joined(_signed_scales(blocked(weight[at], block)) for at in slices(weight)))


def _signed_scales(parts: Tensor) -> Tensor:
    """[n, blocks, block] -> [n, blocks]."""
    extreme = parts.gather(-1, parts.abs().argmax(-1, keepdim=True)).squeeze(-1)
    return torch.where(extreme.abs() > DEAD, extreme / BOTTOM["int4"], torch.ones_like(extreme))


def grid_of(weight: Tensor, kind: str, block: int, shrink: Tensor | float = 1.0) -> Grid:
    """The grid whose ends are the largest values of each block of [N, K], times `shrink` (broadcast over [N, blocks]).

    Raises:
        ValueError: `block` does not divide K.
    """
    parts = blocked(weight, block)
    if kind != AFFINE:
        return Grid(kind, scale_of(parts.abs().amax(-1) * shrink, kind))
    high, low = parts.amax(-1).clamp_min(0) * shrink, parts.amin(-1).clamp_max(0) * shrink
    span = high - low
    scale = torch.where(span > DEAD, span / ASYMMETRIC_TOP, torch.ones_like(span))
    return Grid(kind, scale, (-low / scale).round().clamp(0, ASYMMETRIC_TOP))
