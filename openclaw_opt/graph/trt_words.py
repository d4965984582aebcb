"""The lowered graph in the words TensorRT's parser wants, made in memory just before it is parsed.

The file stays standard ONNX, which onnx.checker, ONNX Runtime and the reference evaluator read. Two things have no
standard word:

    metadata `trt_decomposable`                      →  attribute TRT_decomposable of that Attention
    block scales computed by ReduceMax…Cast(E4M3)    →  TRT_FP4DynamicQuantize(x, global scale): values and block scales
    and QuantizeLinear to E2M1

The second computes the same: scale of a block = E4M3(absmax / (6 · global)), values = E2M1(x / (scale · global)).
"""

from __future__ import annotations

import onnx

DECOMPOSABLE = "trt_decomposable"
"""Key in a node's metadata: the builder may run this attention as separate kernels. No attribute, since onnx.checker and
ONNX Runtime refuse attributes they do not know."""
DOMAIN = "trt"


def parser_model(path: str) -> bytes:
    """The ONNX file at `path` as the parser wants it; weights stay in the file beside it."""
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if any(entry.key == DECOMPOSABLE for entry in node.metadata_props):
            node.attribute.append(onnx.helper.make_attribute("TRT_decomposable", 1))
    if _name_fp4_quantizers(model.graph):
        _sweep(model.graph)
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return bytes(model.SerializeToString())


def _name_fp4_quantizers(graph: onnx.GraphProto) -> int:
    """Replace each dynamic quantization to FP4; gives how many. What fed the old scales is left for `_sweep`."""
    makers = {name: node for node in graph.node for name in node.output}
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear" and _is_dynamic_fp4(node, makers)]
    for node in quantizers:
        scales = _scale_quantizer(node, makers)
        scale, step = scales.input
        rounding = makers[scale]
        block = next(attribute.i for attribute in node.attribute if attribute.name == "block_size")
        new = onnx.helper.make_node(
            "TRT_FP4DynamicQuantize",
            [node.input[0], step],
            [node.output[0], scale],
            name=node.name,
            domain=DOMAIN,
            axis=-1,
            block_size=block,
            scale_type=int(onnx.TensorProto.FLOAT8E4M3FN),
        )
        graph.node.insert(list(graph.node).index(rounding), new)
        graph.node.remove(rounding)
        graph.node.remove(node)
    return len(quantizers)


def _is_dynamic_fp4(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> bool:
    kind = next((attribute.i for attribute in node.attribute if attribute.name == "output_dtype"), 0)
    return kind == onnx.TensorProto.FLOAT4E2M1 and node.input[1] in makers


def _scale_quantizer(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> onnx.NodeProto:
    """The DequantizeLinear(E4M3 scales, global) behind a quantizer's scale input, past a Cast."""
    maker = makers[node.input[1]]
    return makers[maker.input[0]] if maker.op_type == "Cast" else maker


def _sweep(graph: onnx.GraphProto) -> None:
    """Drop nodes that no output needs."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
