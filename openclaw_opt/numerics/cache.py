"""Keys and values as a low-bit cache holds them, one scale a kv head and channel: what ONNX Runtime's attention kernel does.

    code = clamp(round(x / scale), lowest, top)      x̂ = code · scale

rounding half to even, in float32. Unlike a weight's, a code may be `lowest`: what a step brings is not bound by what
calibration saw. A channel that calibration never saw move takes the largest range of its head, so that nothing divides by zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openclaw_opt.formats import CacheFormat
from openclaw_opt.numerics.quantization import DEAD


def codes(x: Tensor, scale: Tensor, row: CacheFormat) -> Tensor:
    """[batch, kv_heads, tokens, head_dim] by scales [kv_heads, 1, head_dim] -> float32 whole numbers of the same shape."""
    return (x.float() / scale).round().clamp(row.lowest, row.top)


def as_cached(x: Tensor, scale: Tensor, row: CacheFormat) -> Tensor:
    """What is read back of `x`, in its dtype."""
    return (codes(x, scale, row) * scale).to(x.dtype)


def scales_of(amax: Tensor, row: CacheFormat) -> Tensor:
    """Ranges [kv_heads, 1, head_dim] -> scales of the same shape; 1 for a head that is zero throughout."""
    head = amax.amax(-1, keepdim=True).expand_as(amax)
    live = torch.where(amax > DEAD, amax, head)
    return torch.where(live > DEAD, live / row.top, torch.ones_like(live)).float()
