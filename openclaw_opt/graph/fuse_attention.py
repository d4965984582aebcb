"""Concat(past, new) + Attention(mask) → com.microsoft::GroupQueryAttention, with the rotation inside where it fits.

The portable layer computes, for query s of a sequence that has P tokens in its cache,

    q' = R(P+s)·q,  k' = R(P+s)·k,  K = [K_past; k'],  V = [V_past; v]
    y  = softmax(mask(cap(scale · q'·Kᵀ))) · V,   key j visible  ⇔  P+s−window < j ≤ P+s  and j is not padding

GroupQueryAttention computes the same from q, k, v in [batch, sequence, heads·head_dim] with cos and sin tables
[positions, rotary/2]; it takes P and what is padding from `seqlens_k` = tokens of each sequence − 1 (int32 [batch]) and
`total_sequence_length` = longest sequence (int32 scalar). It writes k' and v at their place, so the same buffer can be
past and present, and a step costs no copy of the cache. Sequences are dense in it: padding on the right only, and a new
token overwrites the padding. q, k and v that are slices of one linear's output, in that order, go in packed.

Holds for ONNX Runtime's CPU and CUDA kernels: head_dim a multiple of 8; q and k rotated by the same tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_ir as ir

from openclaw_opt.artifacts import KvShape
from openclaw_opt.graph import ir_tools
from openclaw_opt.graph.ir_tools import MICROSOFT, Fused

NAME = "GroupQueryAttention"
HEAD_STEP = 8
BY_HEADS = [0, 2, 1, 3]
NORMS = ("RMSNormalization", "LayerNormalization")


@dataclass(frozen=True)
class Rotary:
    """The tables of one rotation."""

    cos: ir.Value
    sin: ir.Value
    interleaved: int


@dataclass(frozen=True)
class Match:
    """One layer's attention, with everything the fused node takes."""

    attention: ir.Node
    mask: ir.Value
    past: tuple[ir.Value, ir.Value]
    present: tuple[ir.Value, ir.Value]
    query: ir.Value
    key: ir.Value
    value: ir.Value
    rotary: Rotary | None
    result: ir.Value
    """[batch, sequence, q_heads·head_dim]."""


class _NoMatch(Exception):
    """Why an Attention node is not one that GroupQueryAttention computes."""


def fuse(model: ir.Model, layers: tuple[KvShape, ...]) -> Fused:
    """Replace the attention of every layer, in the order of the caches; the masks fall to the sweep."""
    nodes = [node for node in model.graph if node.op_type == "Attention" and not node.domain]
    reasons, matches = [], []
    for node in nodes:
        try:
            matches.append(_match(node, layers))
        except _NoMatch as error:
            reasons.append(f"{node.name}: {error}")
    reasons += _mask_conflicts(matches, layers)
    if not reasons:
        lengths = _lengths(model) if matches else ()
        for match in matches:
            _rewrite(model, match, layers[_layer_of(match)], lengths)
    return Fused(NAME, 0 if reasons else len(matches), tuple(reasons))


def _match(node: ir.Node, layers: tuple[KvShape, ...]) -> Match:
    if len(node.inputs) < 4 or any(value is None for value in node.inputs[:4]):
        raise _NoMatch("it has no explicit mask")
    query, keys, values, mask = (cast("ir.Value", value) for value in node.inputs[:4])
    past_key, new_key = _cache_update(keys)
    past_value, new_value = _cache_update(values)
    shape = layers[_index(past_key)]
    if shape.head_dim % HEAD_STEP:
        raise _NoMatch(f"head_dim {shape.head_dim} is not a multiple of {HEAD_STEP}")
    if node.attributes.get_int("is_causal", 0):
        raise _NoMatch("it is causal and masked at once")
    query_rotary, query = _unrotated(query)
    key_rotary, new_key = _unrotated(new_key)
    if query_rotary != key_rotary:
        raise _NoMatch("query and key are rotated by different tables")
    return Match(
        attention=node,
        mask=mask,
        past=(past_key, past_value),
        present=(keys, values),
        query=query,
        key=new_key,
        value=new_value,
        rotary=query_rotary,
        result=_merged(node.outputs[0]),
    )


def _cache_update(value: ir.Value) -> tuple[ir.Value, ir.Value]:
    """past and new of Concat(past, new) along the tokens, whose result is a graph output."""
    node = value.producer()
    if (
        node is None
        or node.op_type != "Concat"
        or node.attributes.get_int("axis", 0) not in (2, -2)
        or len(node.inputs) != 2
    ):
        raise _NoMatch(f"{value.name} is not Concat(past, new) along axis 2")
    past, new = node.inputs
    if past is None or new is None or not past.is_graph_input() or not value.is_graph_output():
        raise _NoMatch(f"{value.name} does not join a cache input and a cache output")
    return past, new


def _unrotated(value: ir.Value) -> tuple[Rotary | None, ir.Value]:
    """The rotation that can go into the kernel, which takes row P+s of its tables, and what it rotates.

    Rows that are computed (longrope takes another half of the table past the original context, for each sequence of the
    batch on its own) stay outside, and so do tables whose width is not a multiple of 8, which the kernel refuses: then there
    is no rotation here and `value` is already rotated.
    """
    node = value.producer()
    if node is None or node.op_type != "RotaryEmbedding":
        return None, value
    source, cos, sin = node.inputs[:3]
    positions = node.inputs[3] if len(node.inputs) > 3 else None
    if source is None or cos is None or sin is None or positions is None or positions.name != "position_ids":
        return None, value
    if cos.shape is None or len(cos.shape) != 2 or not isinstance(cos.shape[1], int) or cos.shape[1] % HEAD_STEP:
        return None, value
    return Rotary(cos, sin, node.attributes.get_int("interleaved", 0)), source


def _merged(value: ir.Value) -> ir.Value:
    """[batch, heads, sequence, head_dim] -> the value that is the same with the heads side by side."""
    transpose = _only_user(value, "Transpose")
    if list(transpose.attributes.get_ints("perm", [])) != BY_HEADS:
        raise _NoMatch(f"{transpose.name} does not bring the heads together")
    return _only_user(transpose.outputs[0], "Reshape").outputs[0]


def _only_user(value: ir.Value, op: str) -> ir.Node:
    users = value.uses()
    if len(users) != 1 or users[0].node.op_type != op:
        raise _NoMatch(f"{value.name} does not go to one {op} alone")
    return users[0].node


def _mask_conflicts(matches: list[Match], layers: tuple[KvShape, ...]) -> list[str]:
    """GroupQueryAttention makes its own mask; layers of one window must have had one mask, of two windows two."""
    masks: dict[int | None, ir.Value] = {}
    conflicts = []
    for match in matches:
        window = layers[_layer_of(match)].window
        if masks.setdefault(window, match.mask) is not match.mask:
            conflicts.append(
                f"{match.attention.name}: its mask is not the one of the other layers with window {window}"
            )
    if len({id(mask) for mask in masks.values()}) != len(masks):
        conflicts.append(f"layers with the windows {sorted(masks, key=str)} share one mask")
    return conflicts


def _lengths(model: ir.Model) -> tuple[ir.Value, ir.Value]:
    """seqlens_k and total_sequence_length from attention_mask, int32."""
    mask = ir_tools.input_named(model, "attention_mask")
    assert mask is not None, "a portable decoder graph has attention_mask"
    tokens = ir_tools.add_node(model, "ReduceSum", [mask, ir_tools.add_ints(model, 1)], "lengths/tokens", keepdims=0)
    last = ir_tools.add_node(
        model, "Sub", [tokens, ir_tools.add_constant(model, "lengths.one", np.array(1))], "lengths/last"
    )
    seqlens = ir_tools.add_node(model, "Cast", [last], "lengths/seqlens_k", to=ir.DataType.INT32)
    shape = ir_tools.add_node(model, "Shape", [mask], "lengths/shape", start=1, end=2)
    longest = ir_tools.add_node(model, "Squeeze", [shape, ir_tools.add_ints(model, 0)], "lengths/longest")
    return seqlens, ir_tools.add_node(model, "Cast", [longest], "lengths/total", to=ir.DataType.INT32)


def _rewrite(model: ir.Model, match: Match, shape: KvShape, lengths: tuple[ir.Value, ...]) -> None:
    attention = match.attention
    rotary = match.rotary
    attributes = {
        "num_heads": shape.q_heads,
        "kv_num_heads": shape.kv_heads,
        "scale": attention.attributes.get_float("scale", shape.head_dim**-0.5),
        "softcap": attention.attributes.get_float("softcap", 0.0),
        "local_window_size": -1 if shape.window is None else shape.window,
        "do_rotary": int(rotary is not None),
        "rotary_interleaved": rotary.interleaved if rotary else 0,
    }
    tables = [rotary.cos, rotary.sin] if rotary else []
    node = ir.node(
        NAME,
        [*_projections(model, match, shape), *match.past, *lengths, *tables],
        attributes=attributes,
        domain=MICROSOFT,
        num_outputs=3,
        name=attention.name,
    )
    model.graph.append(node)
    for old, new in zip((match.result, *match.present), node.outputs, strict=True):
        ir_tools.take_over(model, old, new)


def _projections(model: ir.Model, match: Match, shape: KvShape) -> list[ir.Value | None]:
    """q, k, v as [batch, sequence, heads·head_dim]; packed in q where they are the slices of one linear's output."""
    packed = _packed_source(match, shape)
    if packed is not None:
        return [packed, None, None]
    heads = (shape.q_heads, shape.kv_heads, shape.kv_heads)
    values = (match.query, match.key, match.value)
    return [_side_by_side(model, value, count, shape.head_dim) for value, count in zip(values, heads, strict=True)]


def _packed_source(match: Match, shape: KvShape) -> ir.Value | None:
    parts = [_before_heads(value) for value in (match.query, match.key, match.value)]
    split = parts[0].producer() if parts[0] is not None else None
    if split is None or split.op_type != "Split" or list(split.outputs) != parts:
        return None
    sizes = ir_tools.constant_ints(split.inputs[1]) if len(split.inputs) > 1 else None
    expected = [heads * shape.head_dim for heads in (shape.q_heads, shape.kv_heads, shape.kv_heads)]
    return split.inputs[0] if sizes == expected and split.attributes.get_int("axis", 0) in (-1, 2) else None


def _before_heads(value: ir.Value) -> ir.Value | None:
    """x of Transpose(Reshape(x)) that only splits the heads; None for anything else."""
    split = _by_token(value)
    reshape = split.producer() if split is not None else None
    return reshape.inputs[0] if reshape is not None and reshape.op_type == "Reshape" else None


def _by_token(value: ir.Value) -> ir.Value | None:
    """x [batch, sequence, heads, head_dim] of Transpose(x) that brings the heads forward; None for anything else."""
    node = value.producer()
    if node is None or node.op_type != "Transpose" or list(node.attributes.get_ints("perm", [])) != BY_HEADS:
        return None
    return node.inputs[0]


def _side_by_side(model: ir.Model, value: ir.Value, heads: int, head_dim: int) -> ir.Value:
    """[batch, heads, sequence, head_dim] -> [batch, sequence, heads·head_dim], without a Transpose where there is a way.

    Norms of a head and rotations are moved before the Transpose: both treat every head and token alone.
    """
    before = _before_heads(value)
    if before is not None:
        return before
    node, width = value.producer(), ir_tools.add_ints(model, 0, 0, heads * head_dim)
    if node is not None and node.op_type == "RotaryEmbedding":
        assert node.inputs[0] is not None
        flat = _side_by_side(model, node.inputs[0], heads, head_dim)
        attributes = {key: attribute.value for key, attribute in node.attributes.items()}
        inputs = [flat, *node.inputs[1:]]
        return ir_tools.add_node(model, node.op_type, inputs, f"{node.name}/flat", **{**attributes, "num_heads": heads})
    split = (
        _by_token(node.inputs[0]) if node is not None and node.op_type in NORMS and node.inputs[0] is not None else None
    )
    if node is not None and split is not None:
        attributes = {key: attribute.value for key, attribute in node.attributes.items()}
        turned = ir_tools.add_node(
            model, node.op_type, [split, *node.inputs[1:]], f"{node.name}/by_token", **attributes
        )
    else:
        turned = ir_tools.add_node(model, "Transpose", [value], f"{value.name}/by_token", perm=BY_HEADS)
    return ir_tools.add_node(model, "Reshape", [turned, width], f"{value.name}/flat")


def _layer_of(match: Match) -> int:
    return _index(match.past[0])


def _index(past: ir.Value) -> int:
    """i of past_key_values.i.key."""
    assert past.name is not None
    return int(past.name.split(".")[1])
