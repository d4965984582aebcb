"""A twin of an NVFP4 graph that ONNX Runtime can run: the FP4 nodes become float32 arithmetic with the same results.

ONNX Runtime has no kernels for FLOAT4E2M1. Every value of it is a float, though, and each step is exact or rounded once, so
that the twin gives what the operators' specification says, bit for bit:

    DequantizeLinear(initializer, scale)   →  initializer: values · scale, rounded to the scale's type; two-level scales are
                                              E4M3 · global in float32, rounded to the graph's type, as the nodes say
    QuantizeLinear(x, scale)               →  q = x / scale in the type the node states (`precision`, else the scale's);
                                              step = 0.5 where |q| < 2, 1 where |q| < 4, else 2;
                                              clip(round(q / step) · step, -6, 6)
    DequantizeLinear(that, scale)          →  values · scale in float32 (exact for half precision), rounded to the scale's type

`round` is to nearest, ties to even, and an even multiple of `step` is the value with the even E2M1 mantissa: magnitudes are
0, 0.5, 1, 1.5, 2, 3, 4, 6. A float32 quotient rounded to half precision is the half precision quotient, since 24 ≥ 2 · 11 + 2 bits.
NaN stays NaN, for which E2M1 has no code. E4M3 nodes are left as they are. Source: ONNX QuantizeLinear-23, OCP Microscaling 1.0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from openclaw_opt.artifacts import Graph, GraphFacts
from openclaw_opt.errors import MachineError
from openclaw_opt.graph import ir_tools

FP4 = ir.DataType.FLOAT4E2M1
FLOAT = ir.DataType.FLOAT
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
NOTE = "NVFP4 emulated by exact float arithmetic"
LARGEST = 6.0
Array = NDArray[Any]


def has_fp4(facts: GraphFacts) -> bool:
    """Does any layer of the graph hold FP4, for which ONNX Runtime has no kernels?"""
    return any(layer.format.startswith("nvfp4") for layer in facts.quantized)


def emulate(graph: Graph, folder: Path) -> Graph:
    """The twin in `folder`, of the same dialect and facts; on disk its weights take the size of the float type.

    Raises:
        MachineError: an FP4 node has a form that this does not know (no blocks, a zero point, a scale of a weight that is no
            constant); it is named.
    """
    model = ir_tools.read_model(graph)
    for node in [node for node in model.graph if node.op_type == DEQUANTIZE and _is_fp4_constant(node.inputs[0])]:
        _dequantize_constant(model, node)
    for node in [node for node in model.graph if node.op_type == QUANTIZE and _makes_fp4(node)]:
        for use in list(node.outputs[0].uses()):
            _dequantize(model, use.node)
        _quantize(model, node)
    ir_tools.sweep(model)
    twin = ir_tools.write_model(model, folder)
    twin.write_facts(graph.facts)
    return twin


def dequantized(codes: Array, scale: Array, axis: int, block: int) -> Array:
    """FP4 codes times the scale of their block along `axis`, in the scale's type."""
    wide = np.repeat(scale.astype(np.float32), block, axis)
    return np.asarray((codes.astype(np.float32) * wide).astype(scale.dtype))


def _is_fp4_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and value.const_value.dtype == FP4


def _makes_fp4(node: ir.Node) -> bool:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    return node.attributes.get_int("output_dtype", 0) == FP4 or (zero is not None and zero.dtype == FP4)


def _dequantize_constant(model: ir.Model, node: ir.Node) -> None:
    codes, scale = _operands(node)
    axis, block = _blocks(node)
    tensor, steps = codes.const_value, _constant(scale, node)
    assert tensor is not None
    shape = tuple(int(size) for size in tensor.shape.numpy())
    kind = ir.DataType.from_numpy(steps.dtype)
    new = ir_tools.add_lazy(
        model, f"{node.name}.value", lambda: dequantized(tensor.numpy(), steps, axis, block), kind, shape
    )
    ir.convenience.replace_all_uses_with(node.outputs[0], new)
    model.graph.remove(node, safe=True)


def _quantize(model: ir.Model, node: ir.Node) -> None:
    """The E2M1 values in float32, in place of the codes and in their blocks: [..., blocks, block, ...]."""
    x, scale = _operands(node)
    axis, block = _blocks(node)
    name = str(node.name)
    split = ir_tools.add_node(model, "Reshape", [x, _split_shape(model, scale, axis, block, name)], f"{name}/split")
    q = _op(model, "Div", [_wide(model, split, f"{name}/x"), _spread(model, scale, axis, name)], f"{name}/q")
    precision = node.attributes.get_int("precision", 0)
    if not precision:
        q = _wide(model, _op(model, "CastLike", [q, scale], f"{name}/narrow"), f"{name}/q_float")
    elif precision != FLOAT:
        raise _unknown(node, f"it divides in {ir.DataType(precision).name}")
    size = _op(model, "Abs", [q], f"{name}/size")
    step = _where_less(model, size, 4.0, _float(model, 1.0), _float(model, 2.0), f"{name}/coarse")
    step = _where_less(model, size, 2.0, _float(model, 0.5), step, f"{name}/step")
    rounded = _op(model, "Round", [_op(model, "Div", [q, step], f"{name}/steps")], f"{name}/round")
    value = _op(model, "Mul", [rounded, step], f"{name}/value")
    top, bottom = _float(model, LARGEST), _float(model, -LARGEST)
    _replace(model, node, _op(model, "Clip", [value, bottom, top], f"{name}/clip"))


def _dequantize(model: ir.Model, node: ir.Node) -> None:
    """Values in blocks times the blocks' scales, in the shape that was quantized."""
    if node.op_type != DEQUANTIZE:
        raise _unknown(node, "it reads FP4 codes and is no DequantizeLinear")
    values, scale = _operands(node)
    axis, block = _blocks(node)
    quantize = values.producer()
    assert quantize is not None
    if _blocks(quantize) != (axis, block):
        raise _unknown(node, "its blocks are not those that were quantized")
    name, source = str(node.name), _operands(quantize)[0]
    y = _op(model, "Mul", [values, _spread(model, scale, axis, name)], f"{name}/value")
    y = _op(model, "CastLike", [y, scale], f"{name}/narrow")
    shape = _op(model, "Shape", [source], f"{name}/shape")
    new = _op(model, "Reshape", [y, shape], f"{name}/whole")
    ir_tools.take_over(model, node.outputs[0], new)


def _replace(model: ir.Model, node: ir.Node, new: ir.Value) -> None:
    ir.convenience.replace_all_uses_with(node.outputs[0], new)
    model.graph.remove(node, safe=True)


def _operands(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """What is (de)quantized, and the scale."""
    value, scale = node.inputs[:2]
    if value is None or scale is None:
        raise _unknown(node, "it has no scale")
    if not ir_tools.is_symmetric(node):
        raise _unknown(node, "it has a zero point")
    return value, scale


def _blocks(node: ir.Node) -> tuple[int, int]:
    """Axis and size of the blocks."""
    block = node.attributes.get_int("block_size", 0)
    if not block:
        raise _unknown(node, "its scale is not one of blocks")
    return node.attributes.get_int("axis", 1), block


def _constant(value: ir.Value, reader: ir.Node) -> Array:
    """A scale that is computed from initializers alone: itself, cast, or dequantized by one scale."""
    if value.const_value is not None:
        return np.asarray(value.const_value.numpy())
    node = value.producer()
    if node is not None and node.op_type == "Cast":
        kind = ir.DataType(node.attributes["to"].as_int())
        return _constant(_first(node), reader).astype(kind.numpy())
    if node is not None and node.op_type == DEQUANTIZE:
        codes, step = (_constant(each, reader) for each in _operands(node))
        if step.size == 1:
            return np.asarray((codes.astype(np.float32) * step.astype(np.float32).reshape(())).astype(step.dtype))
    raise _unknown(reader, "the scale of its weight is no constant")


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _split_shape(model: ir.Model, scale: ir.Value, axis: int, block: int, name: str) -> ir.Value:
    """[..., blocks, block, ...] from the scale's shape, whatever its rank."""
    size = ir_tools.add_ints(model, block)
    if axis == -1:
        parts = [_op(model, "Shape", [scale], f"{name}/blocks"), size]
    else:
        before = ir_tools.add_node(model, "Shape", [scale], f"{name}/before", end=axis + 1)
        parts = [before, size, ir_tools.add_node(model, "Shape", [scale], f"{name}/after", start=axis + 1)]
    return ir_tools.add_node(model, "Concat", parts, f"{name}/split_shape", axis=0)


def _spread(model: ir.Model, scale: ir.Value, axis: int, name: str) -> ir.Value:
    """The scale in float32 with an axis of one for the elements of a block."""
    # A new axis after `axis`: counted from the end of the longer shape, that is `axis` itself.
    at = ir_tools.add_ints(model, axis if axis < 0 else axis + 1)
    return _op(model, "Unsqueeze", [_wide(model, scale, f"{name}/scale"), at], f"{name}/spread")


def _where_less(model: ir.Model, x: ir.Value, limit: float, yes: ir.Value, no: ir.Value, name: str) -> ir.Value:
    return _op(model, "Where", [_op(model, "Less", [x, _float(model, limit)], f"{name}/less"), yes, no], name)


def _float(model: ir.Model, value: float) -> ir.Value:
    return ir_tools.add_constant(model, f"fp4.{value:g}", np.array(value, np.float32))


def _wide(model: ir.Model, x: ir.Value, name: str) -> ir.Value:
    return ir_tools.add_node(model, "Cast", [x], f"{name}/float", to=FLOAT)


def _op(model: ir.Model, kind: str, inputs: list[ir.Value], name: str) -> ir.Value:
    return ir_tools.add_node(model, kind, inputs, name)


def _unknown(node: ir.Node, why: str) -> MachineError:
    return MachineError(
        f"ONNX Runtime has no kernel for FP4, and the node cannot be emulated: {why}",
        where=f"{node.name} ({node.op_type})",
    )
