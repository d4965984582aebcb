"""One normalization for the heads of q and k together, where a decoder normalizes both (Qwen3, Gemma 3). Exact.

    Split(qkv) → q → Reshape → Transpose → RMSNormalization(w_q)      Reshape(qkv) → Slice(q and k heads)
               → k → Reshape → Transpose → RMSNormalization(w_k)  →     → RMSNormalization(1) · [w_q; w_k] → Slice → Transpose

TensorRT does not put a slice and a reduction into one kernel, so the left form takes four kernels before the rotation;
the right form is one reduction, whose scaling goes into the kernel of the rotation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from openclaw_opt.artifacts import KvShape
from openclaw_opt.graph.ir_tools import add_constant, add_ints, add_node

NORM = "RMSNormalization"
BY_HEADS = [0, 2, 1, 3]


@dataclass(frozen=True)
class _Pair:
    """The two norms of a layer, which read slices of one value."""

    qkv: ir.Value
    query: ir.Node
    key: ir.Node

    def weights(self, kv: KvShape) -> np.ndarray:  # type: ignore[type-arg]
        """[q_heads + kv_heads, head_dim]: each head's own weight."""
        q, k = (_constant(node.inputs[1]) for node in (self.query, self.key))
        assert q is not None
        assert k is not None
        return np.concatenate([np.tile(q, (kv.q_heads, 1)), np.tile(k, (kv.kv_heads, 1))])


def join_norms(model: ir.Model, layers: tuple[KvShape, ...]) -> int:
    """Rewrite every layer that normalizes q and k alike; gives how many."""
    pairs = [(index, pair) for index in range(len(layers)) if (pair := _pair(model, index)) is not None]
    for index, pair in pairs:
        _join(model, f"layers.{index}.qk_norm", pair, layers[index])
    return len(pairs)


def _join(model: ir.Model, name: str, pair: _Pair, kv: KvShape) -> None:
    both = kv.q_heads + kv.kv_heads
    dtype = _constant(pair.query.inputs[1]).dtype  # type: ignore[union-attr]
    heads = add_node(
        model, "Reshape", [pair.qkv, add_ints(model, 0, 0, both + kv.kv_heads, kv.head_dim)], f"{name}.heads"
    )
    heads = _slice(model, heads, 0, both, f"{name}.slice")
    ones = add_constant(model, f"ones.{kv.head_dim}", np.ones(kv.head_dim, dtype))
    options = {key: pair.query.attributes[key].value for key in ("axis", "epsilon", "stash_type")}
    normed = add_node(model, NORM, [heads, ones], name, **options)
    scaled = add_node(model, "Mul", [normed, add_constant(model, f"{name}.weight", pair.weights(kv))], f"{name}.scale")
    for node, start, stop in ((pair.query, 0, kv.q_heads), (pair.key, kv.q_heads, both)):
        part = _slice(model, scaled, start, stop, f"{node.name}.slice")
        turned = add_node(model, "Transpose", [part], f"{node.name}.turned", perm=BY_HEADS)
        ir.convenience.replace_all_uses_with(node.outputs[0], turned)
        model.graph.remove(node, safe=True)


def _slice(model: ir.Model, value: ir.Value, start: int, stop: int, name: str) -> ir.Value:
    """Heads `start` to `stop` of [batch, sequence, heads, head_dim]."""
    bounds = [add_ints(model, start), add_ints(model, stop), add_ints(model, 2)]
    return add_node(model, "Slice", [value, *bounds], name)


def _pair(model: ir.Model, index: int) -> _Pair | None:
    """The norms of q and k of a layer, if they differ in nothing but their weight."""
    found = {part: _norm(model, f"layers.{index}.{part}_norm") for part in "qk"}
    query, key = found["q"], found["k"]
    if query is None or key is None:
        return None
    sources = [_split_output(query), _split_output(key)]
    splits = [source.producer() for source in sources if source is not None]
    alike = all(str(query.attributes.get(name)) == str(key.attributes.get(name)) for name in ("axis", "epsilon"))
    if len(splits) != 2 or splits[0] is not splits[1] or splits[0] is None or not alike:
        return None
    if sources != list(splits[0].outputs[:2]) or splits[0].inputs[0] is None:
        return None
    return _Pair(splits[0].inputs[0], query, key)


def _norm(model: ir.Model, scope: str) -> ir.Node | None:
    nodes = [node for node in model.graph if node.op_type == NORM and (node.name or "").startswith(f"{scope}/")]
    return nodes[0] if len(nodes) == 1 and _constant(nodes[0].inputs[1]) is not None else None


def _split_output(norm: ir.Node) -> ir.Value | None:
    """What a norm reads, past Transpose and Reshape, if that is an output of a Split."""
    value = norm.inputs[0]
    for op in ("Transpose", "Reshape"):
        node = value.producer() if value is not None else None
        if node is None or node.op_type != op:
            return None
        value = node.inputs[0]
    maker = value.producer() if value is not None else None
    return value if maker is not None and maker.op_type == "Split" else None


def _constant(value: ir.Value | None) -> np.ndarray | None:  # type: ignore[type-arg]
    return value.const_value.numpy() if value is not None and value.const_value is not None else None
