"""Integer and FP8 quantization of torch tensors: largest values, scales, codes, packing, signal to noise.

Method: symmetric, zero point 0, `code = clamp(round(x · (top / amax)), lowest, top)`, `x̂ = code · scale`, `scale = amax / top`;
rounding is half to even. `top` is 127 (int8), 7 (int4), 448 (FP8 E4M3FN). Codes of int8 weights stay in ±127, of int4 in −8..7;
as `amax` maps to `top`, −8 is only ever met after clipping. All arithmetic is float32.

A channel, block or tensor whose largest value is at most DEAD is taken for zero: codes 0, scale 1. So nothing divides by
zero, in float16 neither.

Layout: weights are [out, in]; blocks run along the last axis; two int4 codes a byte, the first in the low half.
Source: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html, https://arxiv.org/abs/2209.05433 (E4M3).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log10

import torch
from torch import Tensor

from openclaw_opt.numerics.pieces import joined, pieces

DEAD = 2.0**-24
"""The smallest positive float16 number."""
TOP = {"int8": 127.0, "int4": 7.0, "fp8": 448.0}
BOTTOM = {"int8": -127.0, "int4": -8.0, "fp8": -448.0}


def channel_amax(weight: Tensor) -> Tensor:
    """Largest absolute value of each output channel: [out, ...] -> float32 [out, 1, ...]."""
    rest = tuple(range(1, weight.ndim))
    return joined(part.float().abs().amax(dim=rest, keepdim=True) for (part,) in pieces(weight))


def block_amax(x: Tensor, block: int) -> Tensor:
    """Largest absolute value of each block of the last axis: [..., k] -> float32 [..., k / block].

    Raises:
        ValueError: `block` does not divide k.
    """
    return joined(part.abs().amax(-1) for (part,) in pieces(blocked(x, block)))


def blocked(x: Tensor, block: int) -> Tensor:
    """[..., k] -> float32 [..., k / block, block]. Raises ValueError where `block` does not divide k."""
    if block <= 0 or x.shape[-1] % block:
        raise ValueError(f"blocks of {block} do not divide {x.shape[-1]}")
    return x.float().reshape(*x.shape[:-1], -1, block)


def largest_block(sizes: list[int], limit: int, least: int = 16) -> int | None:
    """The largest power of two from `least` to `limit` that divides every size; None if there is none."""
    block = 1 << (limit.bit_length() - 1)
    while block >= least:
        if not any(size % block for size in sizes):
            return block
        block //= 2
    return None


def scale_of(amax: Tensor, kind: str) -> Tensor:
    """float32 scale of values up to `amax`; 1 where `amax` is DEAD. `kind` is a key of TOP."""
    wide = amax.float()
    return torch.where(wide > DEAD, wide / TOP[kind], torch.ones_like(wide))


def quantize(x: Tensor, amax: Tensor, kind: str) -> Tensor:
    """Codes of `x`; `amax` broadcasts against it.

    Returns:
        int8 (codes of `int8` and `int4`) or float8_e4m3fn, of x's shape.
    """
    top, wide = TOP[kind], amax.float()
    # nvidia-modelopt divides the integers' top but multiplies FP8's by the reciprocal: ties fall as the last bit says.
    step = wide.reciprocal() * top if kind == "fp8" else torch.full_like(wide, top) / wide
    inverse = torch.where(wide > DEAD, step, torch.zeros_like(wide))
    x, inverse = torch.broadcast_tensors(x, inverse)  # type: ignore[no-untyped-call]
    return joined(_codes(part, steps, kind) for part, steps in pieces(x, inverse))


def _codes(x: Tensor, inverse: Tensor, kind: str) -> Tensor:
    scaled = (x.float() * inverse).clamp_(BOTTOM[kind], TOP[kind])
    return scaled.to(torch.float8_e4m3fn) if kind == "fp8" else scaled.round_().to(torch.int8)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """float32 values of codes (int8 or float8_e4m3fn); `scale` broadcasts against them."""
    return codes.float() * scale.float()


def quantize_blocks(weight: Tensor, block: int, kind: str = "int4") -> tuple[Tensor, Tensor]:
    """[..., k] -> codes [..., k] and float32 scales [..., k / block]. Raises ValueError where `block` does not divide k."""
    amax = block_amax(weight, block)
    codes = quantize(blocked(weight, block), amax.unsqueeze(-1), kind)
    return codes.flatten(-2), scale_of(amax, kind)


def dequantize_blocks(codes: Tensor, scale: Tensor) -> Tensor:
    """Codes [..., k], scales [..., blocks] -> float32 [..., k]."""
    return dequantize(codes.reshape(*scale.shape, -1), scale.unsqueeze(-1)).flatten(-2)


def pack_int4(codes: Tensor) -> Tensor:
    """int8 codes −8..7, [..., k] with k even -> uint8 [..., k / 2], the first code in the low half."""
    return pack_nibbles(codes.view(torch.uint8) & 0xF)


def unpack_int4(packed: Tensor) -> Tensor:
    """uint8 [..., k / 2] -> int8 codes −8..7 [..., k]; the inverse of `pack_int4`."""
    return (unpack_nibbles(packed) ^ 8).view(torch.int8) - 8


def pack_nibbles(nibbles: Tensor) -> Tensor:
    """uint8 values 0..15, [..., k] with k even -> uint8 [..., k / 2], the first in the low half.

    Raises:
        ValueError: k is odd.
    """
    if nibbles.shape[-1] % 2:
        raise ValueError(f"an odd number of four-bit codes in a row: {nibbles.shape[-1]}")
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """uint8 [..., k / 2] -> uint8 values 0..15 [..., k]."""
    wide = packed.to(torch.int16, memory_format=torch.contiguous_format)
    # Both halves at once: the low byte of the pair comes first in memory, as in all files that we write.
    return ((wide | wide << 4) & 0x0F0F).view(torch.uint8)


@dataclass
class SqnrMeter:
    """Signal to quantization-noise ratio of a stream of tensors; sums are float64."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: Tensor, approximation: Tensor) -> None:
        """Two tensors of one shape."""
        for part, other in pieces(reference, approximation):
            wide, gap = part.double().flatten(), (part.double() - other).flatten()
            self.signal += float(wide.dot(wide))
            self.noise += float(gap.dot(gap))

    @property
    def db(self) -> float | None:
        """10·log10(signal / noise) in dB; None where there is no noise or no signal: no finite number would be true."""
        return 10 * log10(self.signal / self.noise) if self.noise > 0 and self.signal > 0 else None


def sqnr_db(reference: Tensor, approximation: Tensor) -> float | None:
    """10·log10(Σref² / Σ(ref − approx)²) in dB; None where either sum is zero."""
    meter = SqnrMeter()
    meter.add(reference, approximation)
    return meter.db


def relative_difference(reference: Tensor, other: Tensor) -> float:
    """Largest absolute difference over the largest absolute reference value; NaN counts as infinite."""
    gaps = [(part.double() - beside.double()).abs().max() for part, beside in pieces(reference, other)]
    largest = reference.abs().max().double().clamp_min(torch.finfo(torch.float64).tiny)
    value = float(torch.stack(gaps).max() / largest)
    return value if value == value else float("inf")
