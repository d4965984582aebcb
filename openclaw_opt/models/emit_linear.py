"""A linear layer or a quantized convolution as standard ONNX; weights of linears are [in, out] initializers.

    float   MatMul(x, weight)
    int8    MatMul(Q/DQ(x, input_scale), DQ(weight_q [K, N], weight_scale [N], weight_zero [N], axis 1))
            with a scale a token: MatMulInteger(round(x / s) + 128, weight_q + 128) · s · weight_scale, s = max|x| / 127
    fp8     the same without a zero point
    int4    MatMul(x, DQ(weight_q [K, N], weight_scale [K / block, N], axis 0, block_size))
    uint4   the same with weight_zero uint4 [K / block, N]
    nvfp4   MatMul(Q/DQ(x), Transpose(DQ(weight_q [N, K], DQ(weight_scale E4M3 [N, K / 16], weight_global), axis 1)))

Weight-only layers lack the Q/DQ of x. The block scales of an nvfp4 activation are computed in the graph. Nodes and
initializers start with the layer's name.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from openclaw_opt.errors import VerificationError
from openclaw_opt.models.emit import Writer
from openclaw_opt.models.linear import SMALLEST_STEP, QuantConv2d, QuantLayer, QuantLinear
from openclaw_opt.numerics.microscaling import ELEMENT_TOP, SCALE_BOTTOM
from openclaw_opt.numerics.quantization import TOP, pack_int4, pack_nibbles, unpack_int4, unpack_nibbles

MIDDLE = 128
"""The unsigned code that stands for 0."""


def emit_linear(writer: Writer, x: ir.Value, name: str, module: nn.Module, rank: int = 3) -> ir.Value:
    """`x` times the layer's weight, plus its bias. `rank` is that of x."""
    if isinstance(module, QuantLinear) and module.quant.dynamic:
        return add_bias(writer, _by_token(writer, x, name, module), name, module.bias)
    if isinstance(module, QuantLinear):
        weight = _nvfp4_weight(writer, name, module) if module.quant.kind == "nvfp4" else _weight(writer, name, module)
        product = writer.op("MatMul", [_input(writer, x, name, module, rank), weight], name)
        return add_bias(writer, product, name, module.bias)
    assert isinstance(module, nn.Linear)
    matrix, rows, columns = module.weight, *module.weight.shape
    turned = writer.lazy(f"{name}.weight", lambda: matrix.detach().to(writer.dtype).T, writer.dtype, (columns, rows))
    return add_bias(writer, writer.op("MatMul", [x, turned], name), name, module.bias)


def emit_conv(writer: Writer, x: ir.Value, name: str, module: QuantConv2d) -> ir.Value:
    """Conv of the quantized input with the dequantized weight."""
    x = _input(writer, x, name, module, 4)
    low = writer.tensor(f"{name}.weight_q", module.weight_q)
    weight = _dequantize(writer, name, module, low, _scale(writer, f"{name}.weight_scale", module.weight_scale), 0)
    bias = None if module.bias is None else writer.weight(f"{name}.bias", module.bias)
    return writer.op(
        "Conv",
        [x, weight] if bias is None else [x, weight, bias],
        name,
        strides=list(module.stride),
        pads=[*module.padding, *module.padding],
        dilations=list(module.dilation),
        group=module.groups,
    )


def add_bias(writer: Writer, y: ir.Value, name: str, bias: Tensor | None) -> ir.Value:
    return y if bias is None else writer.op("Add", [y, writer.weight(f"{name}.bias", bias)], name)


def _scale(writer: Writer, name: str, value: Tensor) -> ir.Value:
    """A scale in the graph's float type. VerificationError for one that is zero or infinite in that type."""
    narrow = value.to(writer.dtype)
    if not bool(((narrow != 0) & narrow.isfinite()).all()):
        word = str(writer.dtype).removeprefix("torch.")
        raise VerificationError(
            f"a scale between {float(value.min()):.3g} and {float(value.max()):.3g} has no {word} value",
            where=name,
            fix="export: {dtype: bfloat16} or {dtype: float32}",
        )
    return writer.weight(name, value)


def _input(writer: Writer, x: ir.Value, name: str, module: QuantLayer, rank: int) -> ir.Value:
    if module.pre_scale is not None:
        x = writer.op("Mul", [x, writer.weight(f"{name}.pre_scale", module.pre_scale)], name)
    if module.input_scale is None:
        return x
    if module.quant.kind == "nvfp4":
        return _nvfp4_input(writer, x, name, module, rank)
    kind = torch.float8_e4m3fn if module.quant.kind == "fp8" else torch.int8
    scale = _scale(writer, f"{name}.input_scale", module.input_scale)
    zero = writer.tensor(f"{name}.input_zero", torch.zeros((), dtype=kind))
    low = writer.op("QuantizeLinear", [x, scale, zero], f"{name}.input")
    return writer.op("DequantizeLinear", [low, scale, zero], f"{name}.input")


def _weight(writer: Writer, name: str, module: QuantLinear) -> ir.Value:
    rows, columns, block = module.out_features, module.in_features, module.quant.block
    scale = _scale(writer, f"{name}.weight_scale", module.weight_scale.T if block else module.weight_scale)
    if module.quant.kind == "int4":
        low = writer.packed(
            f"{name}.weight_q", lambda: _turned_int4(module.weight_q), ir.DataType.INT4, (columns, rows)
        )
        return writer.op("DequantizeLinear", [low, scale], f"{name}.weight", axis=0, block_size=block)
    if module.quant.kind == "uint4":
        return _uint4_weight(writer, name, module, scale)
    low = writer.lazy(f"{name}.weight_q", lambda: module.weight_q.T, module.weight_q.dtype, (columns, rows))
    return _dequantize(writer, name, module, low, scale, 1)


def _dequantize(writer: Writer, name: str, module: QuantLayer, low: ir.Value, scale: ir.Value, axis: int) -> ir.Value:
    """By channel along `axis`, or by tensor."""
    inputs = [low, scale]
    if module.quant.kind == "int8":
        # ONNX Runtime gives a weight without a zero point a scalar one when it makes it unsigned, and then refuses it.
        inputs.append(writer.tensor(f"{name}.weight_zero", torch.zeros(module.weight_scale.shape, dtype=torch.int8)))
    return writer.op("DequantizeLinear", inputs, f"{name}.weight", axis=axis if module.weight_scale.ndim else None)


def _by_token(writer: Writer, x: ir.Value, name: str, module: QuantLinear) -> ir.Value:
    """Both sides unsigned around 128: the one integer kernel of ONNX Runtime that is fast and does not saturate on any x86."""
    rows, columns, scope = module.out_features, module.in_features, f"{name}.input"
    if module.pre_scale is not None:
        x = writer.op("Mul", [x, writer.weight(f"{name}.pre_scale", module.pre_scale)], scope)
    if writer.dtype != torch.float32:
        x = writer.op("Cast", [x], scope, to=ir.DataType.FLOAT)
    top = writer.constant("int8.top", np.array(TOP["int8"], np.float32))
    middle = writer.constant("uint8.middle", np.array(MIDDLE, np.float32))
    step = writer.op("ReduceMax", [writer.op("Abs", [x], scope), writer.constant("axes.last", [-1])], scope, keepdims=1)
    smallest = writer.constant("step.smallest", np.array(SMALLEST_STEP, np.float32))
    step = writer.op("Max", [writer.op("Div", [step, top], scope), smallest], scope)
    low = writer.op("Add", [writer.op("Round", [writer.op("Div", [x, step], scope)], scope), middle], scope)
    low = writer.op("Cast", [low], scope, to=ir.DataType.UINT8)
    weight = writer.lazy(
        f"{name}.weight_q", lambda: (module.weight_q.T.short() + MIDDLE).to(torch.uint8), torch.uint8, (columns, rows)
    )
    zero = writer.tensor(f"{name}.input_zero", torch.tensor(MIDDLE, dtype=torch.uint8))
    zeros = writer.tensor(f"{name}.weight_zero", torch.full((rows,), MIDDLE, dtype=torch.uint8))
    product = writer.op("MatMulInteger", [low, weight, zero, zeros], name)
    wide = writer.op("Mul", [writer.op("Cast", [product], name, to=ir.DataType.FLOAT), step], name)
    made = writer.op("Mul", [wide, writer.tensor(f"{name}.weight_scale", module.weight_scale)], name)
    return _cast(writer, made, name)


def _uint4_weight(writer: Writer, name: str, module: QuantLinear, scale: ir.Value) -> ir.Value:
    rows, columns, block = module.out_features, module.in_features, module.quant.block
    assert module.weight_zero is not None
    assert block is not None
    zeros, four = module.weight_zero.T, ir.DataType.UINT4
    low = writer.packed(f"{name}.weight_q", lambda: _turned(unpack_nibbles(module.weight_q)), four, (columns, rows))
    zero = writer.packed(f"{name}.weight_zero", lambda: _packed(zeros), four, (columns // block, rows))
    return writer.op("DequantizeLinear", [low, scale, zero], f"{name}.weight", axis=0, block_size=block)


def _turned(codes: Tensor) -> Tensor:
    """uint8 codes [N, K] → the bytes of [K, N] packed along N."""
    return _packed(codes.T)


def _packed(codes: Tensor) -> Tensor:
    """uint8 codes of any shape → bytes of two each, in order; an odd last one has a zero beside it."""
    flat = codes.flatten()
    return pack_nibbles(torch.cat([flat, flat.new_zeros(flat.numel() % 2)]))


def _turned_int4(packed: Tensor) -> Tensor:
    """[N, K / 2] packed along K → the bytes of [K, N] packed along N."""
    codes = unpack_int4(packed).T.flatten()
    return pack_int4(torch.cat([codes, codes.new_zeros(codes.numel() % 2)]))


def _nvfp4_weight(writer: Writer, name: str, module: QuantLinear) -> ir.Value:
    assert module.weight_global is not None
    low = writer.packed(
        f"{name}.weight_q",
        lambda: module.weight_q.flatten(),
        ir.DataType.FLOAT4E2M1,
        (module.out_features, module.in_features),
    )
    scale = writer.op(
        "DequantizeLinear",
        [
            writer.tensor(f"{name}.weight_scale", module.weight_scale),
            writer.tensor(f"{name}.weight_global", module.weight_global),
        ],
        f"{name}.weight_scale",
    )
    scale = _cast(writer, scale, f"{name}.weight_scale")
    wide = writer.op("DequantizeLinear", [low, scale], f"{name}.weight", axis=1, block_size=module.quant.block)
    return writer.op("Transpose", [wide], f"{name}.weight", perm=[1, 0])


def _nvfp4_input(writer: Writer, x: ir.Value, name: str, module: QuantLayer, rank: int) -> ir.Value:
    """Scale of a block = E4M3(absmax / (6 * global)) * global; then Q/DQ to E2M1 along the last axis."""
    assert module.input_scale is not None
    assert module.quant.block is not None
    block, scope = module.quant.block, f"{name}.input"
    step = writer.tensor(f"{name}.input_scale", module.input_scale)
    largest = writer.tensor(f"{name}.input_largest", module.input_scale * ELEMENT_TOP)
    tiny = writer.constant("fp8.tiny", np.array(SCALE_BOTTOM, np.float32))
    split = writer.constant(f"sizes.blocks_{rank}_{block}_{module.in_features}", [0] * (rank - 1) + [-1, block])
    size = writer.op("Abs", [writer.op("Reshape", [x, split], scope)], scope)
    size = writer.op("ReduceMax", [size, writer.constant("axes.last", [-1])], scope, keepdims=0)
    size = writer.op("Cast", [size], scope, to=ir.DataType.FLOAT)
    size = writer.op("Max", [writer.op("Div", [size, largest], scope), tiny], scope)
    scale = writer.op("Cast", [size], scope, to=ir.DataType.FLOAT8E4M3FN)
    scale = _cast(writer, writer.op("DequantizeLinear", [scale, step], f"{scope}_scale"), f"{scope}_scale")
    fp4 = ir.DataType.FLOAT4E2M1
    # Half precision would divide in half precision, and turn some roundings over; kernels divide in float32, as torch does here.
    wide = None if writer.dtype == torch.float32 else ir.DataType.FLOAT
    low = writer.op("QuantizeLinear", [x, scale], scope, axis=-1, block_size=block, output_dtype=fp4, precision=wide)
    return writer.op("DequantizeLinear", [low, scale], scope, axis=-1, block_size=block)


def _cast(writer: Writer, x: ir.Value, scope: str) -> ir.Value:
    if writer.dtype == torch.float32:
        return x
    return writer.op(
        "Cast", [x], scope, to=ir.DataType.BFLOAT16 if writer.dtype == torch.bfloat16 else ir.DataType.FLOAT16
    )
