"""A Hugging Face encoder or vision model as ONNX: traced by torch.onnx, its linears written by us.

Before tracing, each linear and each quantized convolution is replaced by a placeholder that leaves one node of domain
`openclaw_opt` in the graph; afterwards that node gives way to what `models.emit_linear` writes. So names, layouts and
Q/DQ are those of decoders, and no weight goes through the tracer twice.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn

from openclaw_opt.models.emit import TYPES, Writer
from openclaw_opt.models.emit_linear import emit_conv, emit_linear
from openclaw_opt.models.hf import Classifier, Encoder
from openclaw_opt.models.linear import QuantConv2d, QuantLinear, replace_layer
from openclaw_opt.models.quiet import quiet

OPSET = 23
DOMAIN = "openclaw_opt"


class Placeholder(nn.Module):
    """Stands for a layer while the model is traced; `shape` gives its output's shape from its input's."""

    def __init__(self, name: str, like: nn.Module, shape: Callable[[Tensor], tuple[int, ...]]) -> None:
        super().__init__()
        self.name, self.shape = name, shape
        weight = getattr(like, "weight", None)
        if isinstance(weight, Tensor):
            self.register_buffer("weight", weight.new_empty(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::Layer", (x,), {"layer": self.name}, dtype=x.dtype, shape=self.shape(x), version=1
        )


def emit_hf(module: nn.Module, dtype: torch.dtype) -> ir.Model:
    """The graph of an Encoder or a Classifier; it consumes `module`. Batch, and length of text, are dynamic."""
    assert isinstance(module, Encoder | Classifier)
    module = module.to(dtype)
    layers = _take_out(module)
    model = _trace(module)
    _put_back(model, layers, dtype)
    _name_once(model.graph)
    _one_type(model.graph, dtype)
    return model


def _take_out(module: nn.Module) -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | QuantLinear | QuantConv2d)
    }
    for name, layer in layers.items():
        replace_layer(module, name, Placeholder(name, layer, _shape_rule(layer)))
    return layers


def _shape_rule(layer: nn.Module) -> Callable[[Tensor], tuple[int, ...]]:
    if isinstance(layer, QuantConv2d):
        return lambda x: tuple(layer(torch.empty_like(x, device="meta")).shape)
    features = int(layer.out_features)  # type: ignore[arg-type]
    return lambda x: (*x.shape[:-1], features)


def _trace(module: Encoder | Classifier) -> ir.Model:
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    if isinstance(module, Encoder):
        # One tensor each: torch.export takes the same tensor given twice for one input.
        arguments: tuple[Tensor, ...] = tuple(torch.ones(2, 7, dtype=torch.int64) for _ in module.input_names)
        shapes: tuple[dict[int, object], ...] = tuple({0: batch, 1: sequence} for _ in arguments)
    else:
        assert module.spec.image is not None
        arguments, shapes = (torch.zeros(2, *module.spec.image),), ({0: batch},)
    with quiet("torch.onnx"):
        program = torch.onnx.export(
            module,
            arguments,
            input_names=list(module.input_names),
            output_names=list(module.output_names),
            opset_version=OPSET,
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model


def _put_back(model: ir.Model, layers: dict[str, nn.Module], dtype: torch.dtype) -> None:
    writer, graph = Writer(dtype, OPSET), model.graph
    for node in [node for node in graph if node.domain == DOMAIN]:
        name, x, old = node.attributes["layer"].as_string(), node.inputs[0], node.outputs[0]
        assert x is not None
        layer, start = layers[name], len(writer.nodes)
        new = _write(writer, x, name, layer)
        new.type, new.shape = old.type, old.shape
        graph.insert_before(node, writer.nodes[start:])
        if old.is_graph_output():
            new.name, old.name = old.name, f"{name}.traced"
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove(node, safe=True)
    for value in writer.initializers.values():
        graph.register_initializer(value)
    model.opset_imports.pop(DOMAIN, None)
    graph.opset_imports.pop(DOMAIN, None)


def _write(writer: Writer, x: ir.Value, name: str, layer: nn.Module) -> ir.Value:
    if isinstance(layer, QuantConv2d):
        return emit_conv(writer, x, name, layer)
    assert x.shape is not None
    return emit_linear(writer, x, name, layer, rank=len(x.shape))


def _name_once(graph: ir.Graph) -> None:
    """torch names values after operators, which may be the name of an output, too: the inner one gives way."""
    taken = {value.name for value in (*graph.inputs, *graph.outputs, *graph.initializers.values())}
    for node in graph:
        for value in node.outputs:
            if value.is_graph_output():
                continue
            while value.name in taken:
                value.name = f"{value.name}.inner"
            taken.add(value.name)


def _one_type(graph: ir.Graph, dtype: torch.dtype) -> None:
    """Where torch's optimizer folds a batch norm into a bfloat16 convolution it leaves the weights in float32."""
    for node in graph:
        if node.op_type != "Conv":
            continue
        for value in node.inputs[1:]:
            if value is None or value.const_value is None or value.dtype == TYPES[dtype]:
                continue
            cast = torch.from_numpy(value.const_value.numpy().copy()).to(dtype)
            value.const_value = TorchTensor(cast, name=value.name)
            value.dtype = TYPES[dtype]
