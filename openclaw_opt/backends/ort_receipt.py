"""What ONNX Runtime really runs: one profiled run gives the kernel of every node, and so of every quantized layer.

ONNX Runtime rewrites a graph when it opens it; whether Q/DQ became an integer kernel is known only then. The profile names
each kernel by its node, and a fused node keeps the name of the MatMul, Gemm or Conv it came from, which starts with the layer's.
A layer whose weight is dequantized and multiplied in float is not realised, whatever the graph's types say.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from openclaw_opt.artifacts import KernelRow, KvShape, LayerFormat, ReceiptRow
from openclaw_opt.formats import format_named

INTEGER = frozenset(
    {
        "MatMulIntegerToFloat",
        "QLinearMatMul",
        "QGemm",
        "MatMulInteger",
        "DynamicQuantizeMatMul",
        "QLinearConv",
        "ConvInteger",
    }
)
WEIGHT_ONLY = frozenset({"MatMulNBits"})
FLOAT = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv"})
ATTENTION = "GroupQueryAttention"
CACHE_TYPES = {"int8": "int8", "int4": "uint8"}
"""Format of a cache → the element type that the kernel holds it in; int4 lies two a byte."""
ENDING = "_kernel_time"


@dataclass(frozen=True)
class Kernel:
    """One node as it ran."""

    node: str
    op: str
    provider: str
    reads: tuple[str, ...] = ()
    """Element types of its inputs that are there, in ONNX Runtime's words."""


def read_kernels(profile: Path) -> tuple[Kernel, ...]:
    """Every node of a profile of ONNX Runtime, once, in the order of its first run."""
    events = json.loads(profile.read_text())
    kernels: dict[str, Kernel] = {}
    for event in events:
        name, facts = event.get("name", ""), event.get("args", {})
        if event.get("cat") == "Node" and name.endswith(ENDING) and "op_name" in facts:
            node = name.removesuffix(ENDING)
            reads = tuple(word for shape in facts.get("input_type_shape", ()) for word in shape)
            kernels.setdefault(node, Kernel(node, facts["op_name"], facts.get("provider", ""), reads))
    return tuple(kernels.values())


def receipt(layers: Iterable[LayerFormat], kernels: Iterable[Kernel]) -> tuple[ReceiptRow, ...]:
    """One row a quantized layer: what was asked, which kernel ran."""
    known = [kernel for kernel in kernels if kernel.op in INTEGER | WEIGHT_ONLY | FLOAT]
    return tuple(_row(layer, [kernel for kernel in known if _belongs(kernel.node, layer.name)]) for layer in layers)


def cache_receipt(layers: Iterable[KvShape], kernels: Iterable[Kernel]) -> tuple[ReceiptRow, ...]:
    """One row a layer with a low-bit cache: the type that its attention kernel really read. Empty for float caches."""
    attention = [kernel for kernel in kernels if kernel.op == ATTENTION]
    return tuple(
        _cache_row(i, kv.cache, next((one for one in attention if _belongs(one.node, f"layers.{i}")), None))
        for i, kv in enumerate(layers)
        if kv.cache is not None
    )


def _cache_row(index: int, asked: str, kernel: Kernel | None) -> ReceiptRow:
    name = f"layers.{index}.cache"
    if kernel is None:
        why = f"no {ATTENTION} of the profiled run bears the layer's name"
        return ReceiptRow(layer=name, asked=asked, realised="not found", ok=False, why=why)
    wanted = CACHE_TYPES[asked]
    held = [word for word in kernel.reads if word in CACHE_TYPES.values()]
    realised = f"{asked} in {kernel.op}" if held == [wanted, wanted] else "+".join(dict.fromkeys(kernel.reads))
    why = f"kernel {kernel.node} on {kernel.provider} reads {', '.join(dict.fromkeys(kernel.reads))}"
    return ReceiptRow(layer=name, asked=asked, realised=realised, ok=held == [wanted, wanted], why=why)


def _row(layer: LayerFormat, kernels: list[Kernel]) -> ReceiptRow:
    if not kernels:
        why = "no kernel of the profiled run bears the layer's name"
        return ReceiptRow(layer=layer.name, asked=layer.format, realised="not found", ok=False, why=why)
    fitting = _fitting(layer.format)
    wrong = [kernel for kernel in kernels if kernel.op not in fitting]
    shown = (wrong or kernels)[0]
    return ReceiptRow(
        layer=layer.name,
        asked=layer.format,
        realised=shown.op if not wrong else f"float {shown.op} after DequantizeLinear",
        ok=not wrong,
        why=f"kernel {shown.node} on {shown.provider}",
    )


def _fitting(name: str) -> frozenset[str]:
    """Kernels that realise a number format; none for float8 and float4, which ONNX Runtime multiplies in float."""
    row = format_named(name)
    if row.weight not in ("INT8", "INT4", "UINT4"):
        return frozenset()
    return WEIGHT_ONLY if row.weight_only else INTEGER


def _belongs(node: str, layer: str) -> bool:
    return node.startswith((f"{layer}/", f"{layer}."))


def kernel_row(kernels: tuple[Kernel, ...], layers: int) -> KernelRow:
    """Kernels of one run, by type."""
    count = len(kernels)
    by_type = dict(Counter(kernel.op for kernel in kernels).most_common())
    return KernelRow(profile="any", kernels=count, per_layer=count / layers if layers else None, by_type=by_type)
