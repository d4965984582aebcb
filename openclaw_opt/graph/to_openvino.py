"""portable graph → OpenVINO: weight-only layers as MatMulNBits, whose weights lie as [N, K]; everything else as it is. Exact.

OpenVINO multiplies with low-bit weights where a MatMul's weight is [N, K] and turned; from [K, N] it would expand them to float.
Its ONNX reader makes of MatMulNBits just that, and of the portable attention one operator. That the caches become the model's own
state is OpenVINO's form and no ONNX: `backends/openvino_model.py` writes it. ONNX Runtime runs this graph as it is.
"""

from __future__ import annotations

from pathlib import Path

from openclaw_opt.artifacts import Graph
from openclaw_opt.graph import fuse_matmul_nbits, ir_tools
from openclaw_opt.graph.to_onnxruntime import EXACT, MICROSOFT_VERSION, check_fused, shorter, weight_only_layers


def lower(graph: Graph, folder: Path, *, context: int | None = None) -> Graph:
    """Write the portable graph in dialect `openvino` into `folder`.

    Args:
        context: longest sequence of a decoder's engine, in tokens, where it is to be less than the graph is right for.

    Raises:
        VerificationError: a weight-only layer did not become MatMulNBits; its reason is named.
    """
    facts = graph.facts
    model = ir_tools.read_model(graph)
    model.opset_imports[ir_tools.MICROSOFT] = MICROSOFT_VERSION
    fused, wanted = fuse_matmul_nbits.fuse(model, EXACT), weight_only_layers(facts)
    ir_tools.sweep(model)
    check_fused(fused, (wanted, wanted), graph)
    result = ir_tools.write_model(model, folder)
    ir_tools.copy_assets(graph, result)
    counts = {fused.name: fused.count} if fused.count else {}
    changes = {
        "dialect": "openvino",
        "fusions": {**facts.fusions, **counts},
        "context": shorter(facts.context, context),
    }
    result.write_facts(facts.model_copy(update=changes))
    return result
