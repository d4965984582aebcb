"""What TensorRT refuses on a target, known from facts alone: a row each, tried with the builder. Imports nothing heavy.

`check` is for before the work; what only the graph shows is refused in `to_tensorrt`, what only the compiler knows is
translated in `backends.trt_errors`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from openclaw_opt.artifacts import GraphFacts
from openclaw_opt.formats import FORMATS
from openclaw_opt.targets import Target

Verdict = Literal["runs", "slower", "not realised", "refused"]
NEVER = (99, 0)


@dataclass(frozen=True)
class Fact:
    """One row: what TensorRT makes of an operator in an element type.

    Attributes:
        op: `linear`, `convolution`, `attention` or `cache`.
        dtype: a row of formats.py, a float type, or the name of a form that is no row because it is not realised.
        since: least compute capability.
        sizes: head sizes of an attention, inputs a block of a weight; empty for any.
        verdict: `slower` runs as separate kernels; `not realised` builds and runs in half precision.
        tried: compute capabilities it was built for with tensorrt_rtx 1.7.1, or who says it.
    """

    op: str
    dtype: str
    since: tuple[int, int]
    sizes: tuple[int, ...]
    verdict: Verdict
    why: str
    tried: str


HEADS = tuple(range(16, 257, 8))
TABLE = (
    Fact("linear", "int8", (7, 5), (), "runs", "INT8 GEMM; per-channel scales in the next kernel", "sm75 80 86 89 120"),
    Fact("linear", "int8_weight_only", (7, 5), (), "runs", "weights expanded inside the GEMM", "sm89"),
    Fact("linear", "int4", (8, 0), (32, 64, 128), "runs", "weights expanded inside the GEMM", "sm80 86 89 120; sm75 refuses"),
    Fact("linear", "fp8", (8, 9), (), "runs", "FP8 GEMM", "sm89 120; sm75 80 86 refuse"),
    Fact("linear", "nvfp4", (10, 0), (16,), "runs", "FP4 GEMM", "sm120; sm89 refuses"),
    Fact("linear", "nvfp4_weight_only", (10, 0), (16,), "not realised", "weights are expanded to half precision at every call", "sm120"),
    Fact("linear", "mxfp8", (8, 9), (32,), "not realised", "dequantized before a half-precision GEMM", "sm89 120"),
    Fact("convolution", "int8", (7, 5), (), "runs", "INT8 convolution", "sm89"),
    Fact("convolution", "fp8", (8, 9), (), "runs", "FP8 convolution; one with few input channels runs in half precision", "sm89"),
    Fact("convolution", "int4", NEVER, (), "refused", "no format for weights alone has a convolution", "passes/quantize.py"),
    Fact("attention", "float16", (7, 5), HEADS, "runs", "one fused kernel", "sm75 80 89 120"),
    Fact("attention", "bfloat16", (8, 0), HEADS, "runs", "one fused kernel", "sm80 89 120"),
    Fact("attention", "float16", (7, 5), (), "slower", "no fused kernel for this head size", "sm89: 4, 8, 12, 20, 320, 512"),
    Fact("attention", "bfloat16", (8, 0), (), "slower", "no fused kernel for this head size", "sm89"),
    Fact("attention", "float32", (7, 5), (), "slower", "no fused kernel in float32", "sm89"),
    Fact("attention", "fp8", (8, 9), (), "not realised", "half precision with three more kernels", "sm89 120"),
    Fact("cache", "float32", (7, 5), (), "runs", "written in place", "sm89"),
    Fact("cache", "float16", (7, 5), (), "runs", "written in place", "sm75 80 89 120"),
    Fact("cache", "bfloat16", (8, 0), (), "runs", "written in place", "sm80 89 120"),
    Fact("cache", "fp8", NEVER, (), "refused", "the cache update takes float types alone", "sm89"),
)  # fmt: skip
"""The first row that fits is the answer; what fits none is not known, which counts as refused."""


def fact(op: str, dtype: str, compute: tuple[int, int], size: int | None = None) -> Fact | None:
    """What TensorRT makes of it; None where it was never seen to build."""
    fits = (
        row
        for row in TABLE
        if (row.op, row.dtype) == (op, dtype) and compute >= row.since and (not row.sizes or size in row.sizes)
    )
    return next(fits, None)


def sizes_of(op: str, dtype: str) -> tuple[int, ...]:
    """The sizes of the first row of an operator and type."""
    return next(row.sizes for row in TABLE if (row.op, row.dtype) == (op, dtype))


FUSED_HEAD_DIMS = HEADS
FUSED_DTYPES = tuple(dict.fromkeys(row.dtype for row in TABLE if row.op == "attention" and row.verdict == "runs"))
INT4_BLOCKS = sizes_of("linear", "int4")


@dataclass(frozen=True)
class Rule:
    """Attributes: breaks: names what breaks the rule, '' if nothing does; why: a sentence with `{it}` and `{target}`."""

    breaks: Callable[[GraphFacts, Target], str]
    why: str


def _missing_formats(facts: GraphFacts, target: Target) -> str:
    used = dict.fromkeys(layer.format for layer in facts.quantized)
    known = {row.dtype: row.since for row in TABLE if row.op == "linear"}
    return ", ".join(name for name in used if name in known and target.compute < known[name])


def _unrealised_formats(facts: GraphFacts, target: Target) -> str:
    used = dict.fromkeys(layer.format for layer in facts.quantized)
    return ", ".join(name for name in used if name not in FORMATS or "tensorrt" not in FORMATS[name].backends)


def _int4_blocks(facts: GraphFacts, target: Target) -> str:
    blocks = {layer.block for layer in facts.quantized if layer.format == "int4"}
    return ", ".join(str(block) for block in sorted(blocks - set(INT4_BLOCKS), key=str))


RULES = (
    Rule(lambda facts, target: "" if target.module else target.title, "TensorRT does not build for {it}"),
    Rule(_missing_formats, "{it}: {target} has no tensor cores for it"),
    Rule(_unrealised_formats, "{it}: TensorRT does not realise it"),
    Rule(_int4_blocks, "int4 in blocks of {it}: TensorRT takes blocks of 32, 64 or 128"),
    Rule(
        lambda facts, target: facts.dtype if facts.dtype == "bfloat16" and target.compute < (8, 0) else "",
        "{it} needs compute capability 8.0; {target} has less",
    ),
)


def check(facts: GraphFacts, target: Target) -> list[str]:
    """Every reason why TensorRT would refuse this graph on this target; empty if there is none."""
    broken = [(rule.why, rule.breaks(facts, target)) for rule in RULES]
    return [why.format(it=it, target=target.title) for why, it in broken if it]


def advise(facts: GraphFacts) -> list[str]:
    """What is legal and still slower than it could be: attention without a fused kernel."""
    if not facts.kv:
        return []
    if facts.dtype not in FUSED_DTYPES:
        return [
            f"attention in {facts.dtype} has no fused kernel and runs as separate kernels; float16 and bfloat16 have one"
        ]
    odd = sorted({kv.head_dim for kv in facts.kv if kv.head_dim not in FUSED_HEAD_DIMS})
    notes = [f"heads of {dim} elements have no fused attention kernel and run as separate kernels" for dim in odd]
    if facts.fusions.get("explicit_softcap"):
        notes.append(
            f"soft-capped attention has no fused kernel: {facts.fusions['explicit_softcap']} layers run as separate kernels"
        )
    return notes
