"""TensorRT's verbose build log → kernel table and precision receipt. Pure functions of text.

At ProfilingVerbosity.DETAILED the builder ends with a `Layers:` table, one kernel a line: type, element types and sizes of
inputs, constants and outputs, and the ONNX nodes it came from. It is the only view of an engine that needs no GPU, and it
is no stable interface: what is not understood is said in the notes, never guessed. What it shows was chosen ahead of
time; TensorRT-RTX may choose among equal kernels again when it loads the engine on a GPU.

A quantized layer is realised when one of its matrix kernels holds the weight in the element type that was asked for and,
for weight-and-activation formats, also reads the activation in that type. So these all show as not realised: Q/DQ around
a half-precision GEMM, weights expanded by a kernel of their own, MXFP8 and weight-only NVFP4.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from openclaw_opt.artifacts import LayerFormat, ReceiptRow

TRIED = ("tensorrt_rtx 1.4.", "tensorrt_rtx 1.5.", "tensorrt_rtx 1.6.", "tensorrt_rtx 1.7.")
"""Versions whose log the golden tests hold."""

NO_KERNEL = ("shape_call", "host", "signal", "wait", "barrier", "noop")
"""Layer types that launch nothing worth counting."""

ELEMENTWISE = ("kgen",)
"""Generated pointwise and normalization kernels; a dequantization that stands alone is one of these."""


CONVOLUTIONS = ("correlation", "convolution", "conv")


class Wanted(NamedTuple):
    """Element types, in the log's words, that a format asks of a matrix kernel; activation '' for weight-only."""

    weight: tuple[str, ...]
    activation: tuple[str, ...] = ()


FP8 = ("FP8", "FP8E4M3", "Fp8")
FP4 = ("FP4", "FP4E2M1", "Fp4")
WANTED: dict[str, Wanted] = {
    "int8": Wanted(("Int8",), ("Int8",)),
    "int8_per_token": Wanted(("Int8",), ("Int8",)),
    "int8_weight_only": Wanted(("Int8",)),
    "int4": Wanted(("Int4",)),
    "uint4": Wanted(("UInt4",)),
    "fp8": Wanted(FP8, FP8),
    "nvfp4": Wanted(FP4, FP4),
}


@dataclass(frozen=True)
class Tensor:
    dtype: str
    elements: int
    """Product of the static dimensions."""


@dataclass(frozen=True)
class Kernel:
    """One line of the table."""

    name: str
    type: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...]
    """ONNX nodes it computes, wholly or in part."""
    profile: int
    tactic: str = ""

    def serves(self, layer: str) -> bool:
        return any(node == layer or node.startswith((f"{layer}.", f"{layer}/")) for node in self.nodes)

    @property
    def is_attention(self) -> bool:
        """A fused attention; the compiler generates it like a pointwise kernel."""
        return "_mha_" in self.name

    def weight(self, dtypes: Sequence[str]) -> Tensor | None:
        """The largest constant of these element types; single numbers do not count."""
        held = [one for one in self.constants if one.elements > 1 and one.dtype in dtypes]
        return max(held, key=lambda one: one.elements, default=None)


@dataclass(frozen=True)
class BuildLog:
    kernels: tuple[Kernel, ...]
    activation_bytes: tuple[int, ...]
    """One a profile."""
    weight_bytes: int | None
    notes: tuple[str, ...]
    shows_weights: bool = True
    """The table has a column of constants: without it nothing says in what type a kernel holds its weights."""


_LAYER = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<type>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[(?P<constants>.*?)\], )?"  # not before 1.5
    r"Outputs: \[(?P<outputs>.*?)\](?P<rest>, (?:TacticName|TacticValue|StreamId|Metadata).*|)$"
)
_TENSOR = re.compile(r"Name: .*?, Dimensions: \[(?P<dims>[-\d,]*)\].*?(?:Format/)?Datatype: (?P<dtype>\w+)")
_TACTIC = re.compile(r", TacticName: ([^,]+)")
_NODE = re.compile(r"\[ONNX Layer: (.*?)\]")
_PROFILE = re.compile(r"\[profile (\d+)\]")
_GROUP = re.compile(r"_myl(\d+)_\d+$")
_ACTIVATION = re.compile(r"Total Activation Memory: (\d+) bytes")
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")


def parse(lines: Iterable[str], tool: str) -> BuildLog:
    """The kernels and memory figures of a build log; `tool` is the runtime's name and version."""
    activation: list[int] = []
    weights: int | None = None
    rows: list[tuple[str, re.Match[str]]] = []
    suspect = 0
    for line in lines:
        if line.startswith("Name: ") and ", LayerType: " in line:
            match = _LAYER.match(line.rstrip("\n"))
            suspect += match is None
            rows += [(line, match)] if match else []
        elif found := _ACTIVATION.search(line):
            activation.append(int(found[1]))
        elif found := _WEIGHTS.search(line):
            weights = int(found[1])
    profiles = _profiles([line for line, _ in rows], [match["name"] for _, match in rows])
    kernels = tuple(_kernel(match, profile) for (_, match), profile in zip(rows, profiles, strict=True))
    shown = any(match["constants"] is not None for _, match in rows) or not rows
    return BuildLog(kernels, tuple(activation), weights, _notes(tool, len(kernels), suspect, shown), shown)


def _notes(tool: str, kernels: int, suspect: int, shown: bool) -> tuple[str, ...]:
    notes = []
    if not tool.startswith(TRIED):
        notes.append(
            f"the build log of {tool} has not been tried; kernels and receipt are read from it as far as it is understood"
        )
    if not kernels:
        notes.append("the build log has no layer table, so kernels and precisions are not known")
    if not shown:
        notes.append(f"the layer table of {tool} shows no weights, so what a quantized layer runs in is not known")
    if suspect:
        notes.append(f"{suspect} lines of the layer table were not understood")
    return tuple(notes)


def _profiles(lines: Sequence[str], names: Sequence[str]) -> list[int]:
    """Which profile each kernel belongs to: the builder tags names from profile 1 on, and groups kernels by a graph number."""
    groups = [found[1] if (found := _GROUP.search(name)) else None for name in names]
    said = [max((int(tag) for tag in _PROFILE.findall(line)), default=0) for line in lines]
    by_group: dict[str | None, int] = defaultdict(int)
    for group, profile in zip(groups, said, strict=True):
        by_group[group] = max(by_group[group], profile)
    return [own if group is None else by_group[group] for group, own in zip(groups, said, strict=True)]


def _kernel(match: re.Match[str], profile: int) -> Kernel:
    return Kernel(
        name=match["name"],
        type=match["type"],
        inputs=_tensors(match["inputs"]),
        constants=_tensors(match["constants"] or ""),
        outputs=_tensors(match["outputs"]),
        nodes=tuple(_NODE.findall(match["rest"])),
        profile=profile,
        tactic=found[1] if (found := _TACTIC.search(match["rest"])) else "",
    )


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(Tensor(one["dtype"], _elements(one["dims"])) for one in _TENSOR.finditer(text))


def _elements(dims: str) -> int:
    return math.prod(int(dim) for dim in dims.split(",") if dim and int(dim) > 0)


def receipt(log: BuildLog, asked: Sequence[LayerFormat], profiles: Sequence[str]) -> tuple[ReceiptRow, ...]:
    """For each quantized layer and profile: the format asked for, the math realised, and by what evidence."""
    return tuple(
        _receipt_row(
            [one for one in log.kernels if one.profile == index and one.serves(layer.name)],
            layer,
            profile,
            log.shows_weights,
        )
        for index, profile in enumerate(profiles)
        for layer in asked
    )


def _receipt_row(kernels: Sequence[Kernel], layer: LayerFormat, profile: str, shown: bool) -> ReceiptRow:
    wanted = WANTED.get(layer.format)
    matrix = [one for one in kernels if one.is_attention or one.type not in (*ELEMENTWISE, *NO_KERNEL)]
    if wanted is None:
        realised, ok, why = "unknown", False, f"no rule says what kernel realises {layer.format}"
    elif not matrix:
        realised, ok, why = "unknown", False, "the build log shows no matrix kernel for it"
    elif not shown:
        realised, ok, why = "unknown", False, "the build log of this version shows no weights"
    else:
        realised, ok, why = _judge(kernels, matrix, wanted)
    return ReceiptRow(layer=layer.name, asked=layer.format, realised=realised, ok=ok, why=why, profile=profile)


def _judge(kernels: Sequence[Kernel], matrix: Sequence[Kernel], wanted: Wanted) -> tuple[str, bool, str]:
    if attention := next((one for one in matrix if one.is_attention), None):
        return _judge_attention(attention, len(kernels) - 1, wanted)
    for kernel in matrix:
        weight = kernel.weight(wanted.weight)
        if weight is None:
            continue
        read = [one.dtype for one in kernel.inputs]
        if not wanted.activation:
            return f"{weight.dtype} weights", True, f"{kernel.type} {kernel.name} holds {weight.dtype} weights"
        if any(dtype in wanted.activation for dtype in read):
            return (
                _math(kernel, weight.dtype),
                True,
                f"{kernel.type} {kernel.name} reads {weight.dtype} and holds {weight.dtype} weights",
            )
        return (
            _math(kernel, read[0] if read else "?"),
            False,
            f"{kernel.type} {kernel.name} reads {read} with {weight.dtype} weights",
        )
    return _fallback(kernels, matrix[-1], wanted)


def _judge_attention(kernel: Kernel, others: int, wanted: Wanted) -> tuple[str, bool, str]:
    """A fused attention holds no weight: queries, keys and values must be read in the format."""
    read = [one.dtype for one in kernel.inputs[:3]]
    if wanted.activation and all(dtype in wanted.activation for dtype in read):
        return f"{read[0]} attention", True, f"{kernel.type} {kernel.name} reads {read}"
    around = f"; {others} kernels around it quantize and dequantize for nothing" if others else ""
    return f"{read[0] if read else '?'} attention", False, f"{kernel.type} {kernel.name} reads {read}{around}"


def _math(kernel: Kernel, dtype: str) -> str:
    return f"{dtype} {'convolution' if kernel.type in CONVOLUTIONS else 'GEMM'}"


def _fallback(kernels: Sequence[Kernel], matrix: Kernel, wanted: Wanted) -> tuple[str, bool, str]:
    """Half precision: say whether the weights are expanded at each call or were expanded when the engine was built."""
    read = matrix.inputs[0].dtype if matrix.inputs else "?"
    expander = next((one for one in kernels if one.weight(wanted.weight) is not None), None)
    how = (
        f"{expander.name} expands the weights at every call"
        if expander
        else "its weights were expanded when the engine was built"
    )
    return _math(matrix, read), False, f"{matrix.type} {matrix.name} computes in {read}; {how}"


_ERROR = re.compile(
    r"^\[(ERROR|INTERNAL_ERROR)\]|^(Internal Error|terminate called|Segmentation|.*Exception|.*[Ee]rror:)"
)
_DRIVER = re.compile(r"catchCudaError|cudaError 35")
"""Without a driver every failure is followed by these; they are the cause only where nothing else is said."""
_MEMORY = re.compile(
    r"std::bad_alloc|MemoryError|[Oo]ut ?[Oo]f ?[Mm]emory|Cannot allocate memory|[Ii]nsufficient (?:device |host )?memory"
    r"|memory is insufficient|Requested amount of (?:GPU|host) memory|Requested size was \d+ bytes",
)


def problems(lines: Iterable[str]) -> tuple[str, ...]:
    """Error lines of a log, and what the compiler wrote past the logger (lines without a severity), newest last."""
    errors = tuple(dict.fromkeys(line.rstrip("\n") for line in lines if _ERROR.match(line)))
    return tuple(line for line in errors if not _DRIVER.search(line)) or errors


def shortages(lines: Iterable[str]) -> tuple[str, ...]:
    """Lines of any severity that tell of too little memory: a tactic skipped for want of it is only a warning, and what
    fails afterwards is `no implementation`."""
    return tuple(dict.fromkeys(line.rstrip("\n") for line in lines if _MEMORY.search(line)))
