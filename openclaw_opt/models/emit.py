"""Writes ONNX nodes with names that a person and the precision receipt can follow.

A node is named `module/Op`, its output the same; an initializer is named `module.parameter`. Large initializers are
lazy: each is turned into its stored layout when it is written to disk, so that peak memory stays near the weights'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters
from torch import Tensor

TYPES: dict[torch.dtype, ir.DataType] = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.int8: ir.DataType.INT8,
    torch.uint8: ir.DataType.UINT8,
    torch.int64: ir.DataType.INT64,
    torch.bool: ir.DataType.BOOL,
    torch.float8_e4m3fn: ir.DataType.FLOAT8E4M3FN,
}


class Writer:
    """A graph under construction. `dtype` is the type of its float weights and activations."""

    def __init__(self, dtype: torch.dtype, opset: int) -> None:
        self.dtype, self.opset = dtype, opset
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self._taken: set[str] = set()

    def op(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        scope: str,
        *,
        outputs: int | Sequence[str] = 1,
        **attributes: Any,
    ) -> Any:
        """Add a node; its one output value, or a tuple of them. `outputs` may name them instead of counting."""
        name = self._name(f"{scope}/{kind}")
        names = [name] if outputs == 1 else outputs
        if isinstance(names, int):
            names = [f"{name}.{i}" for i in range(names)]
        node = ir.node(
            kind,
            list(inputs),
            attributes={key: value for key, value in attributes.items() if value is not None},
            outputs=[ir.Value(name=each) for each in names],
            version=self.opset,
            name=name,
        )
        self.nodes.append(node)
        return node.outputs[0] if len(names) == 1 else tuple(node.outputs)

    def constant(self, name: str, value: np.ndarray[Any, Any] | Sequence[int] | int) -> ir.Value:
        """A small initializer; the same name gives the same value again. Integers become int64."""
        if name not in self.initializers:
            array = value if isinstance(value, np.ndarray) else np.asarray(value, np.int64)
            self._add(name, ir.tensor(array, name=name))
        return self.initializers[name]

    def tensor(self, name: str, value: Tensor) -> ir.Value:
        """A torch tensor as it is."""
        return self.lazy(name, lambda: value.detach(), value.dtype, tuple(value.shape))

    def weight(self, name: str, value: Tensor) -> ir.Value:
        """A float tensor in the graph's float type."""
        return self.lazy(name, lambda: value.detach().to(self.dtype), self.dtype, tuple(value.shape))

    def lazy(self, name: str, make: Callable[[], Tensor], dtype: torch.dtype, shape: tuple[int, ...]) -> ir.Value:
        """A tensor that is made when it is written."""

        def build() -> ir.TensorProtocol:
            return tensor_adapters.TorchTensor(make().cpu().contiguous(), name=name)

        return self._add(name, ir.LazyTensor(build, dtype=TYPES[dtype], shape=ir.Shape(shape), name=name))

    def packed(self, name: str, make: Callable[[], Tensor], dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
        """A four-bit tensor of `shape`; `make` gives uint8 codes, two a byte, the first in the low half."""

        def build() -> ir.TensorProtocol:
            return ir.PackedTensor(make().cpu().contiguous().numpy(), dtype, shape=shape, name=name)

        return self._add(name, ir.LazyTensor(build, dtype=dtype, shape=ir.Shape(shape), name=name))

    def _add(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor)
        self.initializers[name] = value
        return value

    def _name(self, wish: str) -> str:
        name, count = wish, 1
        while name in self._taken:
            count += 1
            name = f"{wish}_{count}"
        self._taken.add(name)
        return name


def describe(name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    """A graph input; a string in the shape is a dynamic axis."""
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def save(model: ir.Model, folder: Path) -> None:
    """`model.onnx` and `model.onnx.data` in `folder`."""
    ir.save(model, folder / "model.onnx", external_data="model.onnx.data")
