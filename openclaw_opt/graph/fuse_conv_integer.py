"""Q/DQ of input and weight + Conv → ConvInteger, a scale and the bias: an integer kernel without a quantized output.

    conv(s·(q_x), t_c·(q_w)) + b_c  =  s·t_c · conv(q_x, q_w) + b_c      (int32 sums, exact; padding is the zero point)

ONNX Runtime makes QLinearConv only where the output is quantized as well, which ours is not: the convolution would run in float.
Input and weight become uint8 with zero point 128, the same numbers (see `fuse_unsigned_weights` for why). float32 graphs only:
an int32 sum does not fit into float16.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from openclaw_opt.graph import ir_tools
from openclaw_opt.graph.ir_tools import Fused

NAME = "ConvInteger"
ZERO = 128


def fuse(model: ir.Model) -> Fused:
    """Rewrite every Conv whose input and weight are dequantized from int8."""
    count, reasons = 0, []
    for node in [node for node in model.graph if node.op_type == "Conv" and not node.domain]:
        weight, activation = ir_tools.dequantized_constant(node.inputs[1]), ir_tools.dequantize_of(node.inputs[0])
        if weight is None or activation is None or weight.inputs[0].dtype != ir.DataType.INT8:  # type: ignore[union-attr]
            continue
        reason = _why_not(weight, activation)
        if reason:
            reasons.append(f"{node.name}: {reason}")
            continue
        _rewrite(model, node, weight, activation)
        count += 1
    return Fused(NAME, count, tuple(reasons))


def _why_not(weight: ir.Node, activation: ir.Node) -> str:
    quantize = activation.inputs[0].producer() if activation.inputs[0] is not None else None
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return "its input is dequantized without having been quantized"
    scales = (activation.inputs[1], weight.inputs[1])
    if any(scale is None or scale.const_value is None or scale.dtype != ir.DataType.FLOAT for scale in scales):
        return "its scales are not float32 constants"
    if scales[0] is not None and scales[0].const_value is not None and scales[0].const_value.size != 1:
        return "its input has more than one scale"
    if not ir_tools.is_symmetric(weight) or not ir_tools.is_symmetric(activation):
        return "it has a zero point"
    return "its weight's scales are not of the output channels" if weight.attributes.get_int("axis", 1) != 0 else ""


def _rewrite(model: ir.Model, conv: ir.Node, weight: ir.Node, activation: ir.Node) -> None:
    quantize = activation.inputs[0].producer()  # type: ignore[union-attr]
    assert quantize is not None
    source, scale = quantize.inputs[:2]
    codes, steps = weight.inputs[:2]
    assert source is not None and scale is not None and codes is not None and steps is not None  # noqa: PT018
    name = str(conv.name)
    zero = ir_tools.add_constant(model, "uint8.128", np.array(ZERO, np.uint8))
    shifted = (_array(codes).astype(np.int16) + ZERO).astype(np.uint8)
    packed = ir_tools.add_constant(model, f"{codes.name}.unsigned", shifted)
    factor = (_array(scale).reshape(()) * _array(steps).reshape(-1)).astype(np.float32)
    factors = ir_tools.add_constant(model, f"{steps.name}.factor", factor.reshape(1, -1, 1, 1))
    quantized = ir_tools.add_node(model, "QuantizeLinear", [source, scale, zero], f"{name}/quantize")
    attributes = {key: attribute.value for key, attribute in conv.attributes.items()}
    summed = ir_tools.add_node(model, NAME, [quantized, packed, zero, zero], name, **attributes)
    y = ir_tools.add_node(model, "Cast", [summed], f"{name}/float", to=ir.DataType.FLOAT)
    y = ir_tools.add_node(model, "Mul", [y, factors], f"{name}/scale")
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    if bias is not None:
        shape = ir_tools.add_ints(model, 1, -1, 1, 1)
        y = ir_tools.add_node(
            model, "Add", [y, ir_tools.add_node(model, "Reshape", [bias, shape], f"{name}/b")], f"{name}/bias"
        )
    ir_tools.take_over(model, conv.outputs[0], y)


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())
