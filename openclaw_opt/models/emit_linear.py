"""A linear layer as ONNX: MatMul with the weight as a [in, out] initializer."""

from __future__ import annotations

import onnx_ir as ir
from torch import Tensor, nn

from openclaw_opt.models.emit import Writer


def emit_linear(writer: Writer, x: ir.Value, name: str, module: nn.Module) -> ir.Value:
    """`x` times the layer's weight, plus its bias."""
    weight: Tensor = module.weight
    matrix = writer.lazy(
        f"{name}.weight", lambda: weight.detach().to(writer.dtype).T, writer.dtype, (weight.shape[1], weight.shape[0])
    )
    return add_bias(writer, writer.op("MatMul", [x, matrix], name), name, module.bias)


def add_bias(writer: Writer, y: ir.Value, name: str, bias: Tensor | None) -> ir.Value:
    return y if bias is None else writer.op("Add", [y, writer.weight(f"{name}.bias", bias)], name)
