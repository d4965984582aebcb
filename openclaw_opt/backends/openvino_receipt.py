"""What OpenVINO really runs: its compiled model as a graph of executed nodes, each with its type and what it reads.

A quantized layer is realised where the FullyConnected that bears its name reads weights of few bits; where OpenVINO expanded them
when it compiled, it reads float32. The compiled model names nodes after those they came from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openclaw_opt.artifacts import GraphFacts, KernelRow, LayerFormat, ReceiptRow
from openclaw_opt.formats import CACHES

PRODUCTS = ("FullyConnected", "MatMul")
PROBE_TOKENS = 24
ON_GRID = 0.05
"""Of a step; numbers that were not rounded lie up to half a step off."""
ATTENTION = "ScaledDotProductAttention"
NO_WORK = frozenset({"Const", "Input", "Output"})
LOW_BIT = {"int4": ("u4", "i4"), "uint4": ("u4",), "int8_weight_only": ("u8", "i8")}
"""Format of a layer → element types, in OpenVINO's words, of which its product reads the weights."""


@dataclass(frozen=True)
class Node:
    """One executed node: names of those it came from, its kind, its kernel, and the element types and sizes it reads."""

    names: tuple[str, ...]
    kind: str
    kernel: str
    reads: tuple[tuple[str, str], ...]


def executed(compiled: Any) -> tuple[Node, ...]:
    """Every node of an `openvino.CompiledModel` that does work."""
    nodes = []
    for node in compiled.get_runtime_model().get_ops():
        facts = {key: str(value.value) for key, value in node.get_rt_info().items()}
        if facts["layerType"] in NO_WORK:
            continue
        sources = [port.get_source_output() for port in node.inputs()]
        reads = tuple((one.get_element_type().get_type_name(), str(one.get_partial_shape())) for one in sources)
        names = tuple(facts.get("originalLayersNames", node.get_friendly_name()).split(","))
        nodes.append(Node(names, facts["layerType"], facts["primitiveType"], reads))
    return tuple(nodes)


def receipt(layers: Iterable[LayerFormat], nodes: Iterable[Node]) -> tuple[ReceiptRow, ...]:
    """One row a quantized layer: what was asked, what its product reads."""
    products = [node for node in nodes if node.kind in PRODUCTS]
    return tuple(_row(layer, next((node for node in products if _bears(node, layer.name)), None)) for layer in layers)


def _row(layer: LayerFormat, node: Node | None) -> ReceiptRow:
    if node is None:
        why = "no product of the compiled model bears the layer's name"
        return ReceiptRow(layer=layer.name, asked=layer.format, realised="not found", ok=False, why=why)
    kind, shape = node.reads[1]
    ok = node.kind == PRODUCTS[0] and kind in LOW_BIT.get(layer.format, ())
    why = f"{node.kind} {node.kernel} reads its weights {shape} as {kind}"
    realised = f"{kind} {node.kind}" if ok else f"{kind} {node.kind} after decompression"
    return ReceiptRow(layer=layer.name, asked=layer.format, realised=realised, ok=ok, why=why)


def _bears(node: Node, layer: str) -> bool:
    return any(name.startswith((f"{layer}/", f"{layer}.")) for name in node.names)


def cache_receipt(compiled: Any, facts: GraphFacts, asked: str) -> tuple[ReceiptRow, ...]:
    """One row a layer: whether keys and values of a prompt lie on the grid that a cache of so few bits has.

    A property of the compiled model states a type whether or not its attention holds the cache in it. What the state gives back does
    not lie: with b bits each token's row of a head is `least + code · step`, step = (most − least) / (2^b − 1).
    """
    request = compiled.create_infer_request()
    inputs = {name for value in compiled.inputs for name in value.get_names()}
    ids = np.random.default_rng(0).integers(0, facts.vocab or 2, (1, min(PROBE_TOKENS, facts.context or PROBE_TOKENS)))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.size)[None]}
    feed["beam_idx"] = np.zeros(1, np.int32)
    request.infer({name: value for name, value in feed.items() if name in inputs})
    off: dict[str, float] = {}
    for state in request.query_state():
        layer = ".".join(["layers", state.name.split(".")[1], "cache"])
        off[layer] = max(off.get(layer, 0.0), off_grid(np.asarray(state.state.data, np.float32), CACHES[asked].bits))
    return tuple(
        _cache_row(layer, asked, off[layer]) for layer in sorted(off, key=lambda name: int(name.split(".")[1]))
    )


def off_grid(cache: NDArray[np.float32], bits: int) -> float:
    """How far numbers lie from the grid of 2^bits steps between the least and the most of the last axis, in steps; 0.5 is not on it."""
    least, most = cache.min(-1, keepdims=True), cache.max(-1, keepdims=True)
    step = np.maximum(most - least, np.finfo(np.float32).tiny) / (2**bits - 1)
    codes = (cache - least) / step
    return float(np.abs(codes - codes.round()).max())


def _cache_row(layer: str, asked: str, off: float) -> ReceiptRow:
    ok = off < ON_GRID
    why = f"keys and values of {PROBE_TOKENS} random tokens lie within {off:.2g} of a step of {CACHES[asked].bits} bits a token and head"
    return ReceiptRow(layer=layer, asked=asked, realised=f"{asked} a token and head" if ok else "float", ok=ok, why=why)


def kernel_row(nodes: tuple[Node, ...], layers: int) -> KernelRow:
    """Nodes of one run, by type."""
    by_type = dict(Counter(node.kind for node in nodes).most_common())
    per_layer = len(nodes) / layers if layers else None
    return KernelRow(profile="any", kernels=len(nodes), per_layer=per_layer, by_type=by_type)


def attention_note(nodes: tuple[Node, ...], layers: int) -> tuple[str, ...]:
    """Said where a layer's attention is not one operator with its cache."""
    fused = sum(node.kind == ATTENTION for node in nodes)
    if fused >= layers:
        return ()
    return (
        f"attention of {layers - fused} of {layers} layers runs as separate operators: OpenVINO has no kernel for its form",
    )
