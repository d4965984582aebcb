"""What each engine does with zeros in weights: a row an engine, and the sentence that `check` and the engine's notes say.

Zeros are no format: weights are stored and multiplied as they would be without them, unless an engine has kernels that skip
them. Only the 2:4 pattern has such kernels, on NVIDIA's sparse tensor cores, and only TensorRT for data-centre cards offers
them; zeros anywhere else change neither size nor speed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from openclaw_opt.artifacts import GraphFacts
from openclaw_opt.targets import CANDIDATES, FASTEST, Target

TWO_OF_FOUR = "2:4"
FLAG = "SPARSE_WEIGHTS"
AMPERE = (8, 0)
BLOG = "https://developer.nvidia.com/blog/accelerating-inference-with-sparsity-using-ampere-and-tensorrt"


@dataclass(frozen=True)
class Row:
    """One engine.

    Attributes:
        engine: as sentences name it.
        formats: number formats (`float16` for a layer that is not quantized) whose 2:4 zeros its kernels can skip; empty for none.
        compute: least compute capability of these kernels.
        why: what stands behind it, as the end of a sentence.
        source: where that is from; `tried` means with the engine, by this project.
    """

    engine: str
    formats: tuple[str, ...]
    compute: tuple[int, int]
    why: str
    source: str


ENGINES = {
    "onnxruntime": Row("ONNX Runtime", (), AMPERE, "its kernels are dense", "its operator kernels"),
    "gguf": Row("llama.cpp", (), AMPERE, "its kernels are dense", "its ggml kernels"),
    "openvino": Row("OpenVINO", (), AMPERE, "its kernels for low-bit weights are dense", "its CPU plugin"),
    "rtx": Row("tensorrt-rtx", (), AMPERE, f"its builder writes the same bytes with {FLAG} and without", "tried, tensorrt_rtx 1.7.1"),
    "datacenter": Row("tensorrt", ("float16", "int8"), AMPERE, f"the flag {FLAG} is set", BLOG),
}  # fmt: skip


def rows_of(target: Target, backend: str) -> list[Row]:
    """The engines that `backend` stands for on that target."""
    if backend == FASTEST:
        return [ENGINES[name] for name in CANDIDATES]
    return [ENGINES[target.runtime if backend == "tensorrt" else backend]]


def may_skip(target: Target, backend: str) -> bool:
    """Has one of the engines kernels for 2:4 there?"""
    return any(row.formats and target.compute >= row.compute for row in rows_of(target, backend))


def told(patterns: Iterable[str], formats: Collection[str], targets: Sequence[Target], backend: str) -> tuple[str, ...]:
    """What becomes of zeros of these patterns in layers of these formats; `float16` or `float32` for layers left float."""
    said = (
        _sentence(pattern, row, sorted(formats), target)
        for pattern in dict.fromkeys(patterns)
        for target in targets
        for row in rows_of(target, backend)
    )
    return tuple(dict.fromkeys(said))


def _sentence(pattern: str, row: Row, formats: Sequence[str], target: Target) -> str:
    able = [name for name in formats if name in row.formats]
    if pattern != TWO_OF_FOUR:
        return f"{pattern} zeros: not used by {row.engine}; size and speed do not change"
    if not row.formats:
        return f"2:4 zeros: not used by {row.engine}; size and speed do not change ({row.why})"
    if target.compute < row.compute:
        major, minor = row.compute
        return f"2:4 zeros: not used by {row.engine} on {target.title}: its sparse kernels need compute capability {major}.{minor}"
    if not able:
        return f"2:4 zeros: not used by {row.engine} for {', '.join(formats)}; size and speed do not change"
    return (
        f"2:4 zeros: {row.engine} may skip them in {', '.join(able)} layers ({row.why}); it takes a sparse kernel only where "
        "that is faster, and its build log says for how many layers"
    )


def notes(facts: GraphFacts, targets: Sequence[Target], backend: str) -> tuple[str, ...]:
    """The same of a graph; empty where no pass put zeros into it."""
    if not facts.sparse:
        return ()
    return told((one.pattern for one in facts.sparse.values()), set(_formats(facts)), targets, backend)


def _formats(facts: GraphFacts) -> Iterator[str]:
    """Of every layer with zeros."""
    quantized = {layer.name: layer.format for layer in facts.quantized}
    yield from (quantized.get(name, facts.dtype) for name in facts.sparse)
