"""Concat(past, new) + Attention(mask) → com.microsoft::GroupQueryAttention, with the rotation inside where it fits.

The portable layer computes, for query s of a sequence that has P tokens in its cache,

    q' = R(P+s)·q,  k' = R(P+s)·k,  K = [K_past; k'],  V = [V_past; v]
    y  = softmax(mask(cap(scale · q'·Kᵀ))) · V,   key j visible  ⇔  P+s−window < j ≤ P+s  and j is not padding

GroupQueryAttention computes the same from q, k, v in [batch, sequence, heads·head_dim] with cos and sin tables
[positions, rotary/2]; it takes P and what is padding from `seqlens_k` = tokens of each sequence − 1 (int32 [batch]) and
`total_sequence_length` = longest sequence (int32 scalar). It writes k' and v at their place, so the same buffer can be
past and present, and a step costs no copy of the cache. Sequences are dense in it: padding on the right only, and a new
token overwrites the padding. q, k and v that are slices of one linear's output, in that order, go in packed.

A low-bit cache is int8 codes in the portable graph, new ones QuantizeLinear(x / s) and K = Cast(codes) · s with a scale a kv head
and channel. The kernel does both itself, of prompts too: it takes s as `k_scale` and `v_scale`, and int4 codes packed two a byte,
so caches of int4 change their type and width here.

Holds for ONNX Runtime's CPU and CUDA kernels (low-bit caches: for the CPU's): head_dim a multiple of 8; q and k rotated by the same tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_ir as ir

from openclaw_opt.artifacts import KvShape
from openclaw_opt.formats import CACHES
from openclaw_opt.graph import ir_tools
from openclaw_opt.graph.ir_tools import MICROSOFT, Fused

NAME = "GroupQueryAttention"
HEAD_STEP = 8
BY_HEADS = [0, 2, 1, 3]
BY_CHANNEL, BY_TENSOR = "PER_CHANNEL", "PER_TENSOR"
SCALES_AT = 12
"""Place of `k_scale` among the kernel's inputs."""
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
    scales: tuple[ir.Value, ir.Value] | None
    """Of keys and values [kv_heads, 1, head_dim]; None for a float cache."""


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
    keys, k_scale = _held(keys)
    values, v_scale = _held(values)
    past_key, new_key = _cache_update(keys)
    past_value, new_value = _cache_update(values)
    new_key, new_value = _unquantized(new_key, k_scale), _unquantized(new_value, v_scale)
    shape = layers[_index(past_key)]
    if (shape.cache is None) != (k_scale is None) or (k_scale is None) != (v_scale is None):
        raise _NoMatch(f"the cache is to be {shape.cache or 'float'}, and is not")
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
        scales=None if k_scale is None or v_scale is None else (k_scale, v_scale),
    )


def _held(value: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """codes and s of Cast(codes) · s; the value itself and None where it is no such product."""
    node = value.producer()
    if node is None or node.op_type != "Mul":
        return value, None
    wide, scale = node.inputs
    cast_node = wide.producer() if wide is not None else None
    if cast_node is None or cast_node.op_type != "Cast" or scale is None or not scale.is_initializer():
        raise _NoMatch(f"{value.name} is not Cast(codes) · scale")
    return cast("ir.Value", cast_node.inputs[0]), scale


def _unquantized(value: ir.Value, scale: ir.Value | None) -> ir.Value:
    """x of QuantizeLinear(x / s), clipped between or not; `value` where there is no `scale`."""
    if scale is None:
        return value
    for op in ("QuantizeLinear", "Clip", "Div"):
        node = value.producer()
        if node is None or (node.op_type != op and op != "Clip"):
            raise _NoMatch(f"{value.name} is not the code of a key or value")
        if node.op_type == op:
            if op == "Div" and node.inputs[1] is not scale:
                raise _NoMatch(f"{value.name} is divided by another scale than it is read with")
            value = cast("ir.Value", node.inputs[0])
    return value


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
    attributes: dict[str, int | float | str] = {
        "num_heads": shape.q_heads,
        "kv_num_heads": shape.kv_heads,
        "scale": attention.attributes.get_float("scale", shape.head_dim**-0.5),
        "softcap": attention.attributes.get_float("softcap", 0.0),
        "local_window_size": -1 if shape.window is None else shape.window,
        "do_rotary": int(rotary is not None),
        "rotary_interleaved": rotary.interleaved if rotary else 0,
    }
    inputs: list[ir.Value | None] = [*_projections(model, match, shape), *match.past, *lengths]
    inputs += [rotary.cos, rotary.sin] if rotary else []
    if match.scales is not None and shape.cache is not None:
        row = CACHES[shape.cache]
        attributes["kv_cache_bit_width"] = row.bits
        inputs += [None] * (SCALES_AT - len(inputs))
        for part, scale in zip("kv", match.scales, strict=True):
            attributes[f"{part}_quant_type"], given = _given_scale(model, scale)
            inputs.append(given)
        for value in (*match.past, *match.present) if row.bits == 4 else ():
            _pack(value)
    node = ir.node(
        NAME,
        inputs,
        attributes=attributes,
        domain=MICROSOFT,
        num_outputs=3,
        name=attention.name,
    )
    model.graph.append(node)
    for old, new in zip((match.result, *match.present), node.outputs, strict=True):
        ir_tools.take_over(model, old, new)


def _given_scale(model: ir.Model, scale: ir.Value) -> tuple[str, ir.Value]:
    """How the kernel is to take the scale: one number, which it reads faster, where all are the same."""
    assert scale.const_value is not None
    numbers = scale.const_value.numpy().ravel()
    if (numbers != numbers[0]).any():
        return BY_CHANNEL, scale
    return BY_TENSOR, ir_tools.add_constant(model, f"{scale.name}.all", numbers[:1].copy())


def _pack(value: ir.Value) -> None:
    """A cache of int4 codes as the kernel holds it: two channels a byte, the first in the low half, 8 added."""
    assert value.shape is not None
    *batch, width = value.shape
    assert isinstance(width, int)
    value.type, value.shape = ir.TensorType(ir.DataType.UINT8), ir.Shape([*batch, width // 2])


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
