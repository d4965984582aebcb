"""What OpenVINO really runs: its compiled model as a graph of executed nodes, each with its type and what it reads.

A quantized layer is realised where the FullyConnected that bears its name reads weights of few bits; where OpenVINO expanded them
when it compiled, it reads float32. The compiled model names nodes after those they came from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from openclaw_opt.artifacts import KernelRow, LayerFormat, ReceiptRow

PRODUCTS = ("FullyConnected", "MatMul")
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
