"""What an artifact is made of: files, kernels or operators, element types, memory. Read from its folder, nothing is run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from openclaw_opt.artifacts import Engine, EngineFacts, Facts, Graph, GraphFacts, KernelRow, ReceiptRow
from openclaw_opt.backends.trt_kernels import ProfileLayers, read_layers
from openclaw_opt.errors import RecipeError


class Stored(Facts):
    """Initializers of one element type, or the operators of one kind."""

    name: str
    count: int
    bytes: int = 0


class Operators(Facts):
    """An ONNX graph: its operators, and its initializers by element type."""

    file: str
    opset: int
    operators: tuple[Stored, ...]
    """Most frequent first; `domain::Name` where the domain is not ONNX's own."""
    initializers: tuple[Stored, ...]
    """Largest first."""
    inputs: dict[str, str]
    outputs: dict[str, str]
    """Name → element type and shape."""


class CacheOf(Facts):
    """A decoder's key/value cache."""

    format: str
    """Element type, by layer where they differ."""
    token_bytes: float
    """Of one token in all layers."""
    context: int | None
    """Longest sequence, in tokens."""


class Inspection(Facts):
    """What `inspect` shows; `--json` prints it."""

    schema_version: int = 1
    path: str
    kind: str
    """`engine`, `unfinished engine` or `graph`."""
    task: str
    family: str
    dtype: str
    backend: str = ""
    tool: str = ""
    targets: tuple[str, ...] = ()
    compute: tuple[str, ...] = ()
    files: dict[str, int] = {}
    """What the runtime loads, in bytes."""
    profiles: tuple[ProfileLayers, ...] = ()
    kernels: tuple[KernelRow, ...] = ()
    receipt: tuple[ReceiptRow, ...] = ()
    graph: Operators | None = None
    cache: CacheOf | None = None
    """None where there is none."""
    notes: tuple[str, ...] = ()


def inspect(folder: Path) -> Inspection:
    """Raises RecipeError where the folder holds no artifact, or one that cannot be read."""
    try:
        if (folder / Engine.facts_file).is_file():
            return _engine(folder, Engine(folder).facts)
        if (folder / Graph.facts_file).is_file():
            facts = Graph(folder).facts
            return Inspection(path=str(folder), kind="graph", graph=_operators(folder), **_of_graph(facts))
    except (ValidationError, UnicodeDecodeError) as error:
        raise RecipeError("its facts cannot be read", where=str(folder), fix="build the artifact again") from error
    raise RecipeError("the folder holds no engine and no graph", where=str(folder), fix="give the folder of a build")


def _of_graph(facts: GraphFacts) -> dict[str, Any]:
    told: dict[str, Any] = {"task": facts.task, "family": facts.family, "dtype": facts.dtype}
    if facts.kv:
        told["cache"] = CacheOf(format=facts.cache_format, token_bytes=facts.token_bytes, context=facts.context)
    return told


def _engine(folder: Path, facts: EngineFacts) -> Inspection:
    layers = read_layers(folder)
    graph = folder / "graph" if (folder / "graph" / "model.onnx").is_file() else folder
    return Inspection(
        path=str(folder),
        kind="engine" if facts.finished else "unfinished engine",
        backend=facts.backend,
        tool=facts.tool,
        targets=facts.targets or (facts.target,),
        compute=facts.compute,
        files={name: (folder / name).stat().st_size for name in facts.files if (folder / name).is_file()},
        profiles=layers.profiles if layers is not None else (),
        kernels=facts.kernels,
        receipt=facts.receipt,
        graph=_operators(graph) if (graph / "model.onnx").is_file() else None,
        notes=facts.notes,
        **_of_graph(facts.graph),
    )


def _operators(folder: Path) -> Operators:
    """Counts from model.onnx alone; the weights' file is not opened."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    except (DecodeError, FileNotFoundError) as error:
        raise RecipeError("the graph cannot be read", where=str(folder / "model.onnx")) from error
    kinds = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph.node)
    held: dict[str, list[int]] = {}
    for tensor in model.graph.initializer:
        held.setdefault(_type(tensor.data_type), []).append(_bytes(tensor))
    return Operators(
        file="model.onnx",
        opset=next((one.version for one in model.opset_import if not one.domain), 0),
        operators=tuple(Stored(name=name, count=count) for name, count in kinds.most_common()),
        initializers=tuple(
            Stored(name=name, count=len(sizes), bytes=sum(sizes))
            for name, sizes in sorted(held.items(), key=lambda item: -sum(item[1]))
        ),
        inputs={value.name: _shape(value) for value in model.graph.input},
        outputs={value.name: _shape(value) for value in model.graph.output},
    )


def _type(number: int) -> str:
    import onnx

    return str(onnx.TensorProto.DataType.Name(number))


def _bytes(tensor: Any) -> int:
    """Size as ONNX packs it: two 4-bit elements a byte."""
    import math

    import onnx

    four = ("INT4", "UINT4", "FLOAT4E2M1")
    count: int = math.prod(tensor.dims)
    if _type(tensor.data_type) in four:
        return -(-count // 2)
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _shape(value: Any) -> str:
    kind = value.type.tensor_type
    sizes = [str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in kind.shape.dim]
    return f"{_type(kind.elem_type)} [{', '.join(sizes)}]"
