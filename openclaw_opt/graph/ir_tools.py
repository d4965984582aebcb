"""Small tools on onnx_ir that the lowerings share: read and write a graph folder, make constants and nodes, sweep.

Reading is lazy: initializers stay in `model.onnx.data` until they are written, so a rewrite costs no weights in memory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from openclaw_opt.artifacts import Graph
from openclaw_opt.errors import VerificationError

DATA_FILE = "model.onnx.data"


def read_model(graph: Graph) -> ir.Model:
    """The graph as an IR whose initializers are still on disk."""
    return ir.load(graph.onnx)


def write_model(model: ir.Model, folder: Path) -> Graph:
    """Write model.onnx and model.onnx.data into `folder` and check them. Raises VerificationError with the checker's words."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = Graph(folder)
    ir.save(model, graph.onnx, external_data=DATA_FILE)
    check_model(graph)
    return graph


def check_model(graph: Graph) -> None:
    """onnx.checker with full shape inference. Raises VerificationError."""
    try:
        onnx.checker.check_model(str(graph.onnx), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationError(f"onnx.checker refuses the graph: {error}", where=str(graph.onnx)) from error


def copy_assets(source: Graph, result: Graph) -> None:
    """Copy config and tokenizer files on, if there are any."""
    if source.assets.is_dir():
        shutil.copytree(source.assets, result.assets, dirs_exist_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """`target` is the same file where the file system can link, else a copy; weights are never written to in place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def copied(graph: Graph, folder: Path, context: int | None = None) -> Graph:
    """The same graph in `folder`; `context` bounds it further, in tokens. No link: onnx_ir reads no weights that have two names."""
    folder.mkdir(parents=True, exist_ok=True)
    twin = Graph(folder)
    for name in (graph.onnx.name, DATA_FILE):
        shutil.copyfile(graph.folder / name, folder / name)
    copy_assets(graph, twin)
    twin.write_facts(graph.facts.model_copy(update={"context": shorter(graph.facts.context, context)}))
    return twin


def shorter(one: int | None, other: int | None) -> int | None:
    """The smaller of two limits in tokens; None where there is none."""
    return min((limit for limit in (one, other) if limit is not None), default=None)


def sweep(model: ir.Model) -> None:
    """Drop nodes and initializers that no output needs, and order the rest."""
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)


def add_constant(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    """The initializer of that name, made on first use."""
    known = model.graph.initializers.get(name)
    if known is not None:
        return known
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    model.graph.register_initializer(value)
    return value


def add_ints(model: ir.Model, *values: int) -> ir.Value:
    """An int64 vector, named by its content."""
    return add_constant(model, f"ints.{'_'.join(map(str, values))}", np.array(values, np.int64))


def add_node(model: ir.Model, op: str, inputs: list[ir.Value], name: str, **attributes: Any) -> ir.Value:
    """Append a node with one output that is named like the node; `sweep` puts it in its place."""
    node = ir.node(op, inputs, attributes=attributes, name=name)
    node.outputs[0].name = f"{name}.out"
    model.graph.append(node)
    return node.outputs[0]


def input_named(model: ir.Model, name: str) -> ir.Value | None:
    return next((value for value in model.graph.inputs if value.name == name), None)


def node_named(model: ir.Model, name: str) -> ir.Node | None:
    return next((node for node in model.graph if node.name == name), None)


MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""


@dataclass(frozen=True)
class Fused:
    """What one rewrite did: how often it applied, and why it did not where it looked as if it should."""

    name: str
    count: int
    reasons: tuple[str, ...] = ()


def take_over(model: ir.Model, old: ir.Value, new: ir.Value) -> None:
    """`new` gets the users, the name, the type and the place among the outputs of `old`, whose node goes if it is useless."""
    new.type, new.shape = old.type, old.shape
    name = old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    old.name = None
    new.name = name
    node = old.producer()
    if node is not None and all(not output.uses() and not output.is_graph_output() for output in node.outputs):
        model.graph.remove(node, safe=True)


def add_lazy(
    model: ir.Model, name: str, make: Callable[[], NDArray[Any]], dtype: ir.DataType, shape: tuple[int, ...]
) -> ir.Value:
    """A large initializer that is computed when it is written, so that one at a time is in memory."""
    tensor = ir.LazyTensor(lambda: ir.tensor(make(), name=name), dtype=dtype, shape=ir.Shape(shape), name=name)
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def constant_ints(value: ir.Value | None) -> list[int] | None:
    """The integers of an initializer; None for anything else."""
    if value is None or value.const_value is None:
        return None
    return [int(number) for number in value.const_value.numpy().reshape(-1)]


def dequantize_of(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that makes `value`."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def dequantized_constant(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear of an initializer that makes `value`."""
    node = dequantize_of(value)
    return node if node is not None and node.inputs[0] is not None and node.inputs[0].is_initializer() else None


def is_symmetric(dequantize: ir.Node) -> bool:
    """Is the zero point absent or zero everywhere?"""
    zero = dequantize.inputs[2] if len(dequantize.inputs) > 2 else None
    return zero is None or (zero.const_value is not None and not zero.const_value.numpy().any())
