"""NVFP4 in plain torch: four-bit floats in blocks of 16 with an FP8 scale each and one float32 scale a tensor.

Method, for a block b of a tensor with largest value `amax`:
    global = amax / (6 · 448)                                  float32
    scale  = e4m3(clamp(max|b| / (6 · global), 2⁻⁹, 448))      FP8 E4M3FN; 1 for an all-zero block
    code   = e2m1(x / (scale · global)),  x̂ = e2m1⁻¹(code) · scale · global
Element values are ±{0, 0.5, 1, 1.5, 2, 3, 4, 6}; rounding is to nearest, ties to the even mantissa; beyond 6 saturates.
The scale is at least 2⁻⁹ (the smallest E4M3 number), so no block divides by zero.

Layout: codes are four bits, sign in bit 3, then the index into the magnitudes; two a byte, the first in the low half.
Source: OCP Microscaling Formats 1.0 (E2M1); https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html.
Agrees bit for bit with nvidia-modelopt's packer (its CUDA kernels are not needed here).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openclaw_opt.numerics.pieces import joined, pieces
from openclaw_opt.numerics.quantization import block_amax, blocked, pack_nibbles, unpack_nibbles

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
BOUNDS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
"""Midpoints; a value on one of the odd-numbered midpoints goes up, on the others down: to the even mantissa."""
ELEMENT_TOP, SCALE_TOP, SCALE_BOTTOM = 6.0, 448.0, 2.0**-9
SMALLEST_GLOBAL = 1e-30
SIGN = 8


@dataclass(frozen=True)
class Nvfp4:
    """A quantized tensor.

    Attributes:
        packed: uint8 [..., k / 2], two codes a byte.
        scale: float8_e4m3fn [..., k / block].
        global_scale: float32 [].
    """

    packed: Tensor
    scale: Tensor
    global_scale: Tensor

    def dequantize(self) -> Tensor:
        """float32 [..., k]."""
        values = e2m1_values(unpack_nibbles(self.packed)).reshape(*self.scale.shape, -1)
        return (values * (self.scale.float() * self.global_scale).unsqueeze(-1)).flatten(-2)


def global_scale_of(amax: Tensor) -> Tensor:
    """float32 [] from a tensor's largest absolute value; never zero."""
    return (amax.float().amax() / (ELEMENT_TOP * SCALE_TOP)).clamp_min(SMALLEST_GLOBAL)


def e2m1_codes(x: Tensor) -> Tensor:
    """Any float -> uint8 codes 0..15."""
    bounds = torch.tensor(BOUNDS, device=x.device)
    size = x.float().abs()
    index = torch.bucketize(size, bounds)
    tie_up = (size == bounds[1]) | (size == bounds[3]) | (size == bounds[5])
    return (index + tie_up).to(torch.uint8) | ((x < 0).to(torch.uint8) * SIGN)


def e2m1_values(codes: Tensor) -> Tensor:
    """uint8 codes 0..15 -> float32."""
    table = torch.tensor([*MAGNITUDES, *(-value for value in MAGNITUDES)], device=codes.device)
    return table[codes.long()]


def block_scales(x: Tensor, global_scale: Tensor, block: int) -> Tensor:
    """float8_e4m3fn [..., k / block] of x [..., k]. Raises ValueError where `block` does not divide k."""
    amax = block_amax(x, block)
    scale = amax / (ELEMENT_TOP * global_scale)
    scale = torch.where(amax == 0, torch.ones_like(scale), scale)
    return scale.clamp(SCALE_BOTTOM, SCALE_TOP).to(torch.float8_e4m3fn)


def quantize_nvfp4(x: Tensor, amax: Tensor | None = None, block: int = 16) -> Nvfp4:
    """x [..., k] -> codes and scales. `amax` is the tensor's calibrated largest value; None takes x's own.

    Raises:
        ValueError: `block` does not divide k.
    """
    shared = global_scale_of(x.abs().amax() if amax is None else amax)
    scale = block_scales(x, shared, block)
    steps = (scale.float() * shared).unsqueeze(-1)
    packed = (pack_nibbles(e2m1_codes(part / step).flatten(-2)) for part, step in pieces(blocked(x, block), steps))
    return Nvfp4(joined(packed), scale, shared)


def fake_quantize_nvfp4(x: Tensor, amax: Tensor | None = None, block: int = 16) -> Tensor:
    """x [..., k] as NVFP4 would give it back, in x's dtype; block scales are taken from x itself."""
    return quantize_nvfp4(x, amax, block).dequantize().to(x.dtype)
