"""portable graph → ONNX Runtime: its own fused operators, each rewrite exact but for what `accuracy_level` asks.

Decoders: attention with a shared cache, residual + norm in one kernel, weight-only kernels, unsigned weights for W8A8.
Encoders and vision models: the rewrites of quantized layers alone. Their attention and norms are left to the session's own optimizer,
which knows those patterns (`onnxruntime.transformers` matches TorchScript-era graphs only and finds nothing in ours).
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from openclaw_opt.artifacts import Graph, GraphFacts
from openclaw_opt.errors import VerificationError
from openclaw_opt.formats import format_named
from openclaw_opt.graph import (
    fuse_attention,
    fuse_conv_integer,
    fuse_matmul_nbits,
    fuse_skip_norm,
    fuse_unsigned_weights,
    ir_tools,
)
from openclaw_opt.graph.ir_tools import Fused

MICROSOFT_VERSION = 1
FAST = 4
"""`accuracy_level` of MatMulNBits that rounds activations to int8 in the kernel: fast and not exact."""
EXACT = 0
SHOWN = 5


def lower(graph: Graph, folder: Path, *, accuracy_level: int = FAST, context: int | None = None) -> Graph:
    """Write the graph in dialect `onnxruntime` into `folder`.

    Args:
        graph: a portable graph of any task.
        accuracy_level: of the weight-only kernels; `EXACT` computes in the activations' type, `FAST` in int8.
        context: longest sequence the cache is made for, in tokens, where it is to be less than the graph is right for.

    Raises:
        VerificationError: a rewrite that should apply did not; every node that refused is named with its reason.
    """
    facts = graph.facts
    if facts.dialect != "portable":
        raise VerificationError(
            f"only a portable graph can be lowered, not one of dialect {facts.dialect!r}", where=str(graph.folder)
        )
    model = ir_tools.read_model(graph)
    model.opset_imports[ir_tools.MICROSOFT] = MICROSOFT_VERSION
    convolutions = fuse_conv_integer.fuse(model)
    fusions = [convolutions, fuse_matmul_nbits.fuse(model, accuracy_level), fuse_unsigned_weights.fuse(model)]
    if facts.task == "decoder":
        fusions += [fuse_attention.fuse(model, facts.kv), fuse_skip_norm.fuse(model)]
    ir_tools.sweep(model)
    _drop_unused_positions(model)
    for fused, wanted in zip(fusions, _wanted(facts, convolutions.count), strict=False):
        _check(fused, wanted, graph)
    result = ir_tools.write_model(model, folder)
    ir_tools.copy_assets(graph, result)
    counts = {fused.name: fused.count for fused in fusions if fused.count}
    changes = {
        "dialect": "onnxruntime",
        "fusions": {**facts.fusions, **counts},
        "context": ir_tools.shorter(facts.context, context),
    }
    result.write_facts(facts.model_copy(update=changes))
    return result


def with_accuracy_level(graph: Graph, folder: Path, level: int) -> Graph:
    """A lowered graph with another `accuracy_level`, its weights linked: to compare a rewrite exactly, or state a level's cost."""
    folder.mkdir(parents=True, exist_ok=True)
    proto = onnx.load(str(graph.onnx), load_external_data=False)
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == fuse_matmul_nbits.NAME and attribute.name == "accuracy_level":
                attribute.i = level
    twin = Graph(folder)
    onnx.save(proto, str(twin.onnx))
    ir_tools.link_or_copy(graph.folder / ir_tools.DATA_FILE, folder / ir_tools.DATA_FILE)
    twin.write_facts(graph.facts)
    return twin


def _wanted(facts: GraphFacts, convolutions: int) -> list[tuple[int, int | None]]:
    """Least and most applications of each rewrite, in the order of `lower`; None for no upper bound."""
    formats = [format_named(layer.format) for layer in facts.quantized]
    weight_only = sum(row.weight_only for row in formats)
    # Of the layers with int8 activations, those that are not convolutions are linears.
    linears = sum(row.weight == row.activation == "INT8" and not row.dynamic for row in formats) - convolutions
    layers = len(facts.kv)
    # Every layer but the first has a residual before each of its two norms, and the last norm has one.
    norms = (2 * layers, None)
    return [(0, None), (weight_only, weight_only), (linears, linears), (layers, layers), norms]


def _check(fused: Fused, wanted: tuple[int, int | None], graph: Graph) -> None:
    least, most = wanted
    if fused.count >= least and (most is None or fused.count <= most) and not fused.reasons:
        return
    shown = "; ".join(fused.reasons[:SHOWN]) or "no node looks like it"
    raise VerificationError(
        f"{fused.name} applied {fused.count} times and should have {least} times: {shown}", where=str(graph.onnx)
    )


def _drop_unused_positions(model: ir.Model) -> None:
    """position_ids goes where the rotation moved into the attention kernel, which counts for itself."""
    positions = ir_tools.input_named(model, "position_ids")
    if positions is not None and not positions.uses():
        model.graph.inputs.remove(positions)
