"""DequantizeLinear(low-bit weight) + MatMul → com.microsoft::MatMulNBits, the weight-only kernel.

    portable     W[k, n] = s[k // block, n] · q[k, n],    q int4 in −8…7, or int8 with one s[n] a column
    MatMulNBits  W[k, n] = s'[n, k // block] · (u[n, k] − z),   u unsigned, z = 2^(bits−1), its default

    uint4        W[k, n] = s[k // block, n] · (u[n, k] − z[k // block, n]): u and z as they are

so for int4 and int8 u = q + z and the scales are the same numbers: the weights are equal bit for bit. Layout of u: uint8
[N, ceil(K/block), block·bits/8], of two four-bit codes the one of the lower k in the low half. A column's single int8
scale is repeated for each block; the block is the largest of 128, 64, 32, 16 that divides K (else 32, the tail padded with
u = z, which is zero).

`accuracy_level` 0 multiplies in the activations' own type and is exact. Level 4 rounds the activations of each block to int8
on the fly, which is what makes the kernel fast (2 to 4 times on x86) and is not exact: the caller states its deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from openclaw_opt.graph import ir_tools
from openclaw_opt.graph.ir_tools import MICROSOFT, Fused

NAME = "MatMulNBits"
BITS = {ir.DataType.INT4: 4, ir.DataType.UINT4: 4, ir.DataType.INT8: 8}
BLOCKS = (128, 64, 32, 16)
LEAST_BLOCK = 16


@dataclass(frozen=True)
class Match:
    matmul: ir.Node
    x: ir.Value
    weight: ir.Value
    scale: ir.Value
    bits: int
    block: int
    repeat: bool
    """One scale a column, to be repeated for each block."""
    zero: ir.Value | None = None
    """Zero points [blocks, N] of an unsigned weight."""


class _NoMatch(Exception):
    """Why a dequantized weight cannot be multiplied by MatMulNBits."""


def fuse(model: ir.Model, accuracy_level: int) -> Fused:
    """Replace every MatMul of float activations with a dequantized int4 or int8 weight."""
    count, reasons = 0, []
    for node in [node for node in model.graph if node.op_type == "MatMul" and not node.domain]:
        weight = ir_tools.dequantized_constant(node.inputs[1])
        if weight is None or ir_tools.dequantize_of(node.inputs[0]) is not None:
            continue
        try:
            match = _match(node, weight)
        except _NoMatch as error:
            reasons.append(f"{node.name}: {error}")
            continue
        _rewrite(model, match, accuracy_level)
        count += 1
    return Fused(NAME, count, tuple(reasons))


def _match(matmul: ir.Node, dequantize: ir.Node) -> Match:
    x = matmul.inputs[0]
    weight, scale = dequantize.inputs[:2]
    assert x is not None and weight is not None and scale is not None  # noqa: PT018
    if weight.dtype not in BITS or weight.shape is None or len(weight.shape) != 2:
        raise _NoMatch(f"its weight is {weight.dtype} {weight.shape}, not a matrix of int4 or int8")
    unsigned = weight.dtype == ir.DataType.UINT4
    if not unsigned and not ir_tools.is_symmetric(dequantize):
        raise _NoMatch("its signed weight has a zero point")
    if scale.const_value is None:
        raise _NoMatch("its scale is not a constant")
    block, axis = dequantize.attributes.get_int("block_size", 0), dequantize.attributes.get_int("axis", 1)
    bits = BITS[weight.dtype]
    if block:
        if axis != 0 or block < LEAST_BLOCK or block & (block - 1):
            raise _NoMatch(
                f"blocks of {block} along axis {axis}; needed is a power of two from {LEAST_BLOCK} along axis 0"
            )
        zero = dequantize.inputs[2] if unsigned else None
        return Match(matmul, x, weight, scale, bits, block, repeat=False, zero=zero)
    if unsigned:
        raise _NoMatch("its unsigned weight has no blocks")
    if scale.const_value.size not in (1, weight.shape[1]) or (scale.const_value.size > 1 and axis not in (1, -1)):
        raise _NoMatch("its scale is neither one number nor one a column")
    k = int(weight.shape[0])
    return Match(matmul, x, weight, scale, bits, next((size for size in BLOCKS if k % size == 0), 32), repeat=True)


def pack(codes: NDArray[np.integer[Any]], bits: int, block: int, *, unsigned: bool = False) -> NDArray[np.uint8]:
    """Codes [K, N] -> uint8 [N, ceil(K/block), block·bits/8], signed ones around the zero point 2^(bits−1)."""
    k, n = codes.shape
    blocks = -(-k // block)
    zero = 0 if unsigned else 1 << (bits - 1)
    made = np.full((n, blocks * block), zero, np.uint8)
    made[:, :k] = (codes.astype(np.uint8) + np.uint8(zero)).T  # wraps around: −8 is 248, and 248 + 8 is 0
    if bits == 4:
        made = made[:, 0::2] | (made[:, 1::2] << 4)
    return made.reshape(n, blocks, block * bits // 8)


def _rewrite(model: ir.Model, match: Match, accuracy_level: int) -> None:
    weight, scale = match.weight, match.scale
    assert weight.shape is not None
    k, n = (int(size) for size in weight.shape)
    blocks = -(-k // match.block)
    codes = ir_tools.add_lazy(
        model,
        f"{weight.name}.nbits",
        lambda: pack(_array(weight).astype(np.int8), match.bits, match.block, unsigned=match.zero is not None),
        ir.DataType.UINT8,
        (n, blocks, match.block * match.bits // 8),
    )
    assert scale.dtype is not None
    scales = ir_tools.add_lazy(
        model, f"{scale.name}.nbits", lambda: _scales(_array(scale), blocks, n, match.repeat), scale.dtype, (n, blocks)
    )
    attributes = {"K": k, "N": n, "bits": match.bits, "block_size": match.block, "accuracy_level": accuracy_level}
    inputs = [match.x, codes, scales]
    if match.zero is not None:
        inputs.append(_zeros(model, match.zero, n, blocks))
    node = ir.node(NAME, inputs, attributes=attributes, domain=MICROSOFT, name=match.matmul.name)
    model.graph.append(node)
    ir_tools.take_over(model, match.matmul.outputs[0], node.outputs[0])


def _zeros(model: ir.Model, zero: ir.Value, columns: int, blocks: int) -> ir.Value:
    """uint4 [blocks, N] -> uint8 [N, ceil(blocks/2)], two a byte, the first in the low half."""

    def made() -> NDArray[np.uint8]:
        wide = np.zeros((columns, blocks + blocks % 2), np.uint8)
        wide[:, :blocks] = _array(zero).astype(np.uint8).T
        return np.bitwise_or(wide[:, 0::2], np.left_shift(wide[:, 1::2], 4), dtype=np.uint8)

    return ir_tools.add_lazy(model, f"{zero.name}.nbits", made, ir.DataType.UINT8, (columns, -(-blocks // 2)))


def _scales(scales: NDArray[Any], blocks: int, columns: int, repeat: bool) -> NDArray[Any]:
    """[N, blocks] from [blocks, N], or from one scale a column."""
    if repeat:
        scales = np.broadcast_to(scales.reshape(1, -1), (blocks, columns))
    return np.ascontiguousarray(scales.T)


def _array(value: ir.Value) -> NDArray[Any]:
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())
