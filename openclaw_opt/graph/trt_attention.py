"""Attention as TensorRT takes it: which kernels exist, and the explicit form of what its parser refuses.

Soft-capped attention, `softmax(mask(c·tanh(s·QKᵀ/c)))·V`, has no TensorRT operator. It becomes MatMul, Tanh, Where and
Softmax; grouped query heads share their key head by folding the group into the row axis, [B, Hkv·G, S, D] →
[B, Hkv, G·S, D], which moves no key. Capping and softmax are done in float32: a half-precision tanh loses the order of
near-tied scores.

Kernel limits were tried with the builder of TensorRT-RTX 1.7 on SM75 to SM120.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from openclaw_opt.graph.ir_tools import add_constant, add_ints, add_node
from openclaw_opt.graph.trt_legality import FUSED_DTYPES, FUSED_HEAD_DIMS
from openclaw_opt.graph.trt_words import DECOMPOSABLE


@dataclass(frozen=True)
class Heads:
    """Static sizes of one attention: query heads, key heads, keys (None when dynamic), elements of a head."""

    query: int
    key: int
    dim: int
    keys: int


def has_fused_kernel(dtype: str, head_dim: int | None) -> bool:
    """Whether TensorRT has one kernel for this attention; unknown sizes count as no."""
    return dtype in FUSED_DTYPES and head_dim in FUSED_HEAD_DIMS


def allow_decomposition(node: ir.Node) -> None:
    node.metadata_props[DECOMPOSABLE] = "1"


def softcap_of(node: ir.Node) -> float:
    attribute = node.attributes.get("softcap")
    return attribute.as_float() if attribute is not None else 0.0


def explicit_softcap(model: ir.Model, node: ir.Node, heads: Heads, dtype: ir.DataType) -> None:
    """Replace a soft-capped Attention(q [B,H,S,D], k, v [B,Hkv,T,D], mask [B,1,S,T] bool) by explicit operators."""
    query, key, value, mask = (node.inputs[index] for index in range(4))
    if query is None or key is None or value is None or mask is None:
        raise ValueError(f"{node.name}: a soft-capped attention needs q, k, v and a mask")
    base, cap = node.name or "attention", softcap_of(node)
    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else heads.dim**-0.5
    rows = add_node(model, "Reshape", [query, add_ints(model, 0, heads.key, -1, heads.dim)], f"{base}.rows")
    columns = add_node(model, "Transpose", [key], f"{base}.columns", perm=[0, 1, 3, 2])
    scores = add_node(model, "MatMul", [rows, columns], f"{base}.scores")
    scores = add_node(model, "Cast", [scores], f"{base}.wide", to=ir.DataType.FLOAT)
    scores = add_node(model, "Mul", [scores, _scalar(model, f"{base}.inner_scale", scale / cap)], f"{base}.scaled")
    scores = add_node(model, "Tanh", [scores], f"{base}.tanh")
    scores = add_node(model, "Mul", [scores, _scalar(model, f"{base}.cap", cap)], f"{base}.capped")
    shares = _masked_softmax(model, scores, mask, heads, base)
    shares = add_node(model, "Cast", [shares], f"{base}.narrow", to=dtype)
    mixed = add_node(model, "MatMul", [shares, value], f"{base}.mixed")
    result = add_node(model, "Reshape", [mixed, add_ints(model, 0, heads.query, -1, heads.dim)], f"{base}.heads")
    ir.convenience.replace_all_uses_with(node.outputs[0], result)
    model.graph.remove(node, safe=True)


def _masked_softmax(model: ir.Model, scores: ir.Value, mask: ir.Value, heads: Heads, base: str) -> ir.Value:
    """Softmax over the visible keys; scores [B, Hkv, G·S, T] float32, mask [B, 1, S, T] bool."""
    group = heads.query // heads.key
    lowest = _scalar(model, "mask.lowest", float(np.finfo(np.float32).min))
    if group == 1:
        masked = add_node(model, "Where", [mask, scores, lowest], f"{base}.masked")
        return add_node(model, "Softmax", [masked], f"{base}.softmax", axis=-1)
    grouped = add_node(
        model, "Reshape", [scores, add_ints(model, 0, heads.key, group, -1, heads.keys)], f"{base}.grouped"
    )
    wide_mask = add_node(model, "Unsqueeze", [mask, add_ints(model, 1)], f"{base}.mask")
    masked = add_node(model, "Where", [wide_mask, grouped, lowest], f"{base}.masked")
    shares = add_node(model, "Softmax", [masked], f"{base}.softmax", axis=-1)
    return add_node(model, "Reshape", [shares, add_ints(model, 0, heads.key, -1, heads.keys)], f"{base}.flat")


def _scalar(model: ir.Model, name: str, value: float) -> ir.Value:
    return add_constant(model, name, np.array(value, np.float32))
