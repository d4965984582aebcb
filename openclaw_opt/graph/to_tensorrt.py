"""portable graph → TensorRT: static caches written in place, a mask computed from positions. Exact.

    Concat(past, new)         →  TensorScatter(cache, new, position_ids[:, 0]): past_key_values.i.* is [B, Hkv, context, D],
                                 present.i.* is the same buffer with the new tokens written at the first position
    mask from attention_mask  →  slot j is visible iff j ≤ position, and j > position - window where a layer has a window

Slots behind a token are never visible, so a right-padded batch needs no padding mask: what padding wrote is overwritten
by the next token of its sequence before that slot becomes visible. Encoders and vision models keep their inputs.

The graph passes onnx.checker and runs on ONNX Runtime; attention that has no fused kernel in TensorRT is marked in the
node's metadata (see `trt_words`). In TensorRT past_key_values.i.* and present.i.* must be bound to the same memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from openclaw_opt.artifacts import Graph, GraphFacts, KvShape
from openclaw_opt.errors import RecipeError, VerificationError
from openclaw_opt.graph import ir_tools, trt_attention, trt_qk_norm

OPSET = 24
FLOATS = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}

DOMAINS = ("", "ai.onnx", "trt")
REFUSED_OPS = {
    "DynamicQuantizeLinear": "quantize with static scales",
    "QLinearMatMul": "export Q/DQ around MatMul",
    "QLinearConv": "export Q/DQ around Conv",
    "MatMulInteger": "export Q/DQ around MatMul",
    "ConvInteger": "export Q/DQ around Conv",
}


@dataclass(frozen=True)
class Refusal:
    """A form of Attention that TensorRT refuses or, worse, takes and computes wrongly."""

    why: str
    holds: Callable[[ir.Node], bool]


def _has_input(index: int) -> Callable[[ir.Node], bool]:
    return lambda node: len(node.inputs) > index and node.inputs[index] is not None


def _dequantized(node: ir.Node) -> bool:
    producers = [value.producer() for value in node.inputs[:3] if value is not None]
    return any(producer is not None and producer.op_type == "DequantizeLinear" for producer in producers)


def _flag(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else 0


ATTENTION_REFUSALS = (
    Refusal("its past caches are inputs of Attention, which the parser refuses", _has_input(4)),
    Refusal("nonpad_kv_seqlen is dropped in silence, so it would attend to unwritten slots", _has_input(6)),
    Refusal("it has more than one output", lambda node: sum(bool(value.uses()) for value in node.outputs) > 1),
    Refusal(
        "mask and is_causal exclude each other", lambda node: _has_input(3)(node) and _flag(node, "is_causal") == 1
    ),
    Refusal("Q/DQ around it would add kernels and leave it in half precision", _dequantized),
    Refusal("softmax_precision is not taken", lambda node: _flag(node, "softmax_precision") > 0),
)


def lower(graph: Graph, folder: Path, context: int | None = None) -> Graph:
    """The graph TensorRT builds from. `context` is the number of cache slots, in tokens (decoders; default the graph's).

    Raises RecipeError when the graph is not right for that context, VerificationError when a node has a form TensorRT
    does not take.
    """
    facts = graph.facts
    model = ir_tools.read_model(graph)
    model.graph.opset_imports[""] = OPSET
    fusions: dict[str, int] = {}
    if facts.task == "decoder":
        context = _legal_context(facts, context)
        fusions = _Decoder(model, facts, context).rewrite()
    fusions["decomposable_attention"] = _mark_decomposable(model, facts)
    refuse_illegal(model)
    result = ir_tools.write_model(model, folder)
    ir_tools.copy_assets(graph, result)
    counts = {**facts.fusions, **{name: count for name, count in fusions.items() if count}}
    update = {"dialect": "tensorrt", "opset": OPSET, "context": context, "fusions": counts}
    result.write_facts(facts.model_copy(update=update))
    return result


def _legal_context(facts: GraphFacts, context: int | None) -> int:
    asked = context or facts.context
    if asked is None:
        raise RecipeError("the number of cache slots is not known", fix="give `context`")
    if facts.context is not None and asked > facts.context:
        raise RecipeError(
            f"context {asked} is longer than the model is right for", fix=f"at most {facts.context} tokens"
        )
    return asked


@dataclass(frozen=True)
class _Decoder:
    """The rewrites of a decoder; one mask for each distinct window."""

    model: ir.Model
    facts: GraphFacts
    context: int

    def rewrite(self) -> dict[str, int]:
        positions = self._input("position_ids")
        write = ir_tools.add_node(
            self.model,
            "Gather",
            [positions, ir_tools.add_constant(self.model, "cache.first", np.array(0))],
            "cache.write",
            axis=1,
        )
        for index, kv in enumerate(self.facts.kv):
            keys = self._scatter(index, "key", kv, write)
            self._scatter(index, "value", kv, write)
            self._remask(index, keys, kv, positions)
        joined = trt_qk_norm.join_norms(self.model, self.facts.kv)
        capped = self._uncap()
        ir_tools.sweep(self.model)
        self._drop_attention_mask()
        return {
            "static_cache": 2 * len(self.facts.kv),
            "mask_from_positions": len(self.facts.kv),
            "explicit_softcap": capped,
            "joint_qk_norm": joined,
        }

    def _input(self, name: str) -> ir.Value:
        value = ir_tools.input_named(self.model, name)
        if value is None:
            raise VerificationError("the portable graph has no such input", where=name)
        return value

    def _scatter(self, index: int, part: str, kv: KvShape, write: ir.Value) -> ir.Value:
        """Concat(past, new) → TensorScatter; gives the whole cache."""
        past = self._input(f"past_key_values.{index}.{part}")
        concat = next((use.node for use in past.uses() if use.node.op_type == "Concat"), None)
        if concat is None or concat.inputs[0] is not past or len(concat.inputs) != 2 or len(past.uses()) != 1:
            raise VerificationError("the cache is not appended to by one Concat(past, new)", where=past.name or "")
        past.shape = ir.Shape(["batch", kv.kv_heads, self.context, kv.head_dim])
        old = concat.outputs[0]
        scatter = ir.node(
            "TensorScatter", [past, concat.inputs[1], write], {"axis": 2, "mode": "linear"}, name=concat.name
        )
        cache = scatter.outputs[0]
        self.model.graph.insert_after(concat, scatter)
        ir.convenience.replace_all_uses_with(old, cache, replace_graph_outputs=True)
        self.model.graph.remove(concat, safe=True)
        old.name, cache.name = None, f"present.{index}.{part}"
        cache.shape, cache.dtype = past.shape, past.dtype
        return cache

    def _remask(self, index: int, keys: ir.Value, kv: KvShape, positions: ir.Value) -> None:
        node = next((use.node for use in keys.uses() if use.node.op_type == "Attention"), None)
        if node is None or node.inputs[1] is not keys:
            raise VerificationError(f"no Attention reads the cache of layer {index}", where=keys.name or "")
        if len(node.inputs) < 4 or node.inputs[3] is None or _flag(node, "is_causal"):
            raise VerificationError("the attention of a decoder needs an explicit mask", where=node.name or "")
        window = kv.window if kv.window is not None and kv.window < self.context else None
        node.replace_input_with(3, self._mask(window, positions))

    def _mask(self, window: int | None, positions: ir.Value) -> ir.Value:
        """[B, 1, S, context] bool."""
        name = "mask.full" if window is None else f"mask.window_{window}"
        known = ir_tools.node_named(self.model, name)
        if known is not None:
            return known.outputs[0]
        slots = ir_tools.add_constant(self.model, "mask.slots", np.arange(self.context).reshape(1, 1, 1, -1))
        if window is None:
            return ir_tools.add_node(self.model, "LessOrEqual", [slots, self._query(positions)], name)
        first = ir_tools.add_constant(self.model, f"{name}.size", np.array(window))
        first = ir_tools.add_node(self.model, "Sub", [self._query(positions), first], f"{name}.first")
        recent = ir_tools.add_node(self.model, "Greater", [slots, first], f"{name}.recent")
        return ir_tools.add_node(self.model, "And", [self._mask(None, positions), recent], name)

    def _query(self, positions: ir.Value) -> ir.Value:
        known = ir_tools.node_named(self.model, "mask.query")
        if known is not None:
            return known.outputs[0]
        return ir_tools.add_node(
            self.model, "Unsqueeze", [positions, ir_tools.add_ints(self.model, 1, 3)], "mask.query"
        )

    def _uncap(self) -> int:
        capped = [node for node in self.model.graph if node.op_type == "Attention" and trt_attention.softcap_of(node)]
        for node in capped:
            cache = node.inputs[1]
            index = int((cache.name if cache is not None and cache.name else "").split(".")[1])
            kv = self.facts.kv[index]
            heads = trt_attention.Heads(kv.q_heads, kv.kv_heads, kv.head_dim, self.context)
            trt_attention.explicit_softcap(self.model, node, heads, FLOATS[self.facts.dtype])
        return len(capped)

    def _drop_attention_mask(self) -> None:
        mask = ir_tools.input_named(self.model, "attention_mask")
        if mask is None:
            return
        if mask.uses():
            node = mask.uses()[0].node
            raise VerificationError(f"attention_mask is still read by {node.op_type}", where=node.name or "")
        self.model.graph.inputs.remove(mask)


def _mark_decomposable(model: ir.Model, facts: GraphFacts) -> int:
    """Mark each attention without a fused kernel; gives how many."""
    dims = {kv.head_dim for kv in facts.kv}
    marked = 0
    for node in model.graph:
        if node.op_type != "Attention":
            continue
        head_dim = _head_dim(node) or (dims.copy().pop() if len(dims) == 1 else None)
        if not trt_attention.has_fused_kernel(facts.dtype, head_dim):
            trt_attention.allow_decomposition(node)
            marked += 1
    return marked


def _head_dim(node: ir.Node) -> int | None:
    """Elements of a head, from the shape of k, [B, H, T, D] or [B, T, H·D]; None if the graph does not say."""
    key = node.inputs[1] if len(node.inputs) > 1 else None
    last = key.shape[-1] if key is not None and key.shape is not None and len(key.shape) else None
    if not isinstance(last, int):
        return None
    return last // (_flag(node, "kv_num_heads") or 1)


def refuse_illegal(model: ir.Model) -> None:
    """Raise VerificationError for the first node TensorRT would refuse, or take and compute wrongly."""
    for node in model.graph:
        where = f"{node.name} ({node.op_type})"
        if node.domain not in DOMAINS:
            raise VerificationError(f"operators of {node.domain} need plugins that TensorRT does not ship", where=where)
        if node.op_type in REFUSED_OPS:
            raise VerificationError("TensorRT does not take this operator", where=where, fix=REFUSED_OPS[node.op_type])
        if node.op_type == "Attention":
            _refuse_attention(node, where)


def _refuse_attention(node: ir.Node, where: str) -> None:
    why = next((refusal.why for refusal in ATTENTION_REFUSALS if refusal.holds(node)), "")
    if why:
        raise VerificationError(f"TensorRT does not take this attention: {why}", where=where)
    if trt_attention.softcap_of(node):
        raise VerificationError("TensorRT does not take soft-capped attention here", where=where)
