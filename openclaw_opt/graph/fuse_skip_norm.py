"""Add(residual, branch) + norm → com.microsoft::SkipSimplifiedLayerNormalization / SkipLayerNormalization.

    s = residual + branch;  n = s · rsqrt(mean(s²) + ε) · γ            (RMS norm)
    s = residual + branch;  n = (s − mean(s)) · rsqrt(var(s) + ε) · γ + β   (layer norm)

One kernel computes both s (its fourth output, which the next residual takes) and n; the arithmetic is the same. It needs a
norm of the last axis, γ (and β) of one dimension, and two operands of one shape: an Add of a bias is not a residual.
"""

from __future__ import annotations

import onnx_ir as ir

from openclaw_opt.graph import ir_tools
from openclaw_opt.graph.ir_tools import MICROSOFT, Fused

NAME = "SkipNorm"
FUSED = {"RMSNormalization": "SkipSimplifiedLayerNormalization", "LayerNormalization": "SkipLayerNormalization"}
SUM_OUTPUT = 3


def fuse(model: ir.Model) -> Fused:
    """Replace every residual Add that a norm follows. A norm of anything else has nothing to fuse: that is no reason."""
    count, reasons = 0, []
    for norm in [node for node in model.graph if node.op_type in FUSED and not node.domain]:
        add = norm.inputs[0].producer() if norm.inputs[0] is not None else None
        if add is None or add.op_type != "Add" or _is_bias(add):
            continue
        reason = _why_not(norm)
        if reason:
            reasons.append(f"{norm.name}: {reason}")
            continue
        _rewrite(model, add, norm)
        count += 1
    return Fused(NAME, count, tuple(reasons))


def _is_bias(add: ir.Node) -> bool:
    return any(value is None or value.is_initializer() for value in add.inputs)


def _why_not(norm: ir.Node) -> str:
    if norm.attributes.get_int("axis", -1) not in (-1, 2):
        return "it does not norm the last axis"
    if any(value is not None and value.shape is not None and len(value.shape) != 1 for value in norm.inputs[1:]):
        return "its scale has more than one dimension"
    if any(output.uses() or output.is_graph_output() for output in norm.outputs[1:]):
        return "its mean or deviation is used"
    return ""


def _rewrite(model: ir.Model, add: ir.Node, norm: ir.Node) -> None:
    residual_sum = add.outputs[0]
    node = ir.node(
        FUSED[norm.op_type],
        [*add.inputs, *norm.inputs[1:]],
        attributes={"epsilon": norm.attributes.get_float("epsilon", 1e-5)},
        domain=MICROSOFT,
        num_outputs=SUM_OUTPUT + 1,
        name=norm.name,
    )
    model.graph.append(node)
    for unused in node.outputs[1:SUM_OUTPUT]:
        unused.name = ""
    ir_tools.take_over(model, norm.outputs[0], node.outputs[0])
    ir_tools.take_over(model, residual_sum, node.outputs[SUM_OUTPUT])
