"""Rotary positions: inverse frequencies and cos/sin tables of every supported type.

Source: RoFormer (arXiv 2104.09864), position interpolation (2306.15595), YaRN (2309.00071), LongRoPE (2402.13753) and
the Llama 3.1 model card. Computed in float32, like the reference, so that tables are equal bit for bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from openclaw_opt.models.spec import RopeSpec


def inverse_frequencies(rope: RopeSpec, *, long: bool = False) -> Tensor:
    """float32 [dim / 2], in radians per token; `long` picks the second set of longrope."""
    powers = torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim
    plain = 1.0 / (rope.theta**powers)
    if rope.type == "linear":
        return plain / rope.factor
    if rope.type == "llama3":
        return _llama3(rope, plain)
    if rope.type == "yarn":
        return _yarn(rope, rope.theta**powers)
    if rope.type == "longrope":
        stretch = torch.tensor(rope.long if long else rope.short, dtype=torch.float32)
        return 1.0 / (stretch * rope.theta**powers)
    return plain


def _llama3(rope: RopeSpec, plain: Tensor) -> Tensor:
    """Long waves are stretched by `factor`, short ones kept, those between interpolated."""
    wavelength = 2 * math.pi / plain
    blend = (rope.original / wavelength - rope.low_freq) / (rope.high_freq - rope.low_freq)
    between = (1 - blend) * plain / rope.factor + blend * plain
    stretched = torch.where(wavelength > rope.original / rope.low_freq, plain / rope.factor, plain)
    middle = (wavelength >= rope.original / rope.high_freq) & (wavelength <= rope.original / rope.low_freq)
    return torch.where(middle, between, stretched)


def _yarn(rope: RopeSpec, waves: Tensor) -> Tensor:
    """A linear ramp over the dimensions from extrapolated (fast) to interpolated (slow) frequencies."""

    def dimension(rotations: float) -> float:
        return rope.dim * math.log(rope.original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    high = high + 0.001 if low == high else high
    ramp = torch.clamp((torch.arange(rope.dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    keep = 1 - ramp
    return 1.0 / (rope.factor * waves) * (1 - keep) + 1.0 / waves * keep


def rotation(rope: RopeSpec, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [batch, sequence, dim / 2], for int64 [batch, sequence].

    A longrope row whose last position is past the original context uses the long factors throughout, whatever the
    other rows of the batch do.
    """
    positions = position_ids[..., None].float()
    angles = positions * inverse_frequencies(rope).to(positions.device)
    if rope.type == "longrope":
        far = (position_ids.amax(dim=-1) >= rope.original)[:, None, None]
        angles = torch.where(far, positions * inverse_frequencies(rope, long=True).to(positions.device), angles)
    return angles.cos() * rope.amplitude, angles.sin() * rope.amplitude


def tables(rope: RopeSpec, context: int) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [context, dim / 2]; for longrope [2 * context, dim / 2], the short ones first."""
    positions = torch.arange(context, dtype=torch.float32)[:, None]
    angles = positions * inverse_frequencies(rope)
    if rope.type == "longrope":
        angles = torch.cat([angles, positions * inverse_frequencies(rope, long=True)])
    return angles.cos() * rope.amplitude, angles.sin() * rope.amplitude


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading elements of each head: [batch, heads, sequence, head_dim] with [batch, sequence, dim / 2]."""
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
