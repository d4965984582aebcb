"""What TensorRT refuses on a target, known from facts alone: a row each, tried with the builder. Imports nothing heavy.

`check` is for before the work; what only the graph shows is refused in `to_tensorrt`, what only the compiler knows is
translated in `backends.trt_errors`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from openclaw_opt.artifacts import GraphFacts
from openclaw_opt.formats import FORMATS
from openclaw_opt.targets import Target

FUSED_HEAD_DIMS = range(16, 257, 8)
FUSED_DTYPES = ("float16", "bfloat16")
INT4_BLOCKS = (32, 64, 128)


@dataclass(frozen=True)
class Rule:
    """Attributes: breaks: names what breaks the rule, '' if nothing does; why: a sentence with `{it}` and `{target}`."""

    breaks: Callable[[GraphFacts, Target], str]
    why: str


def _missing_formats(facts: GraphFacts, target: Target) -> str:
    used = dict.fromkeys(layer.format for layer in facts.quantized)
    return ", ".join(name for name in used if name in FORMATS and target.compute < FORMATS[name].compute)


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
