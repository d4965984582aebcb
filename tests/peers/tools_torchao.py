"""torchao: `quantize_` on the model itself, all linear layers but the head.

Int4WeightOnlyConfig has no layout for CPUs in this version; its kernel for them ("opaque") is a prototype of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accuracy_worker import Made, Task
from tools_torch import linears, load, made, parameters, runner


def quantized(config: Callable[[], Any], dtype: str = "float32") -> Callable[[Task], Made]:
    def make(task: Task) -> Made:
        import torch
        from torchao.quantization import quantize_

        model = load(task, dtype)
        wanted = {name: m for name, m in linears(model, task).items() if isinstance(m, torch.nn.Linear)}
        count, found = parameters(model), made(model, task, wanted)
        quantize_(model, config(), filter_fn=lambda _, name: name in wanted)
        return Made(runner(model, task), count, found.layers, found.weights)

    return make


def int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def int8_dynamic() -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return Int8DynamicActivationInt8WeightConfig()


def int4_opaque(block: int) -> Callable[[], Any]:
    def make() -> Any:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return PrototypeInt4WeightOnlyConfig(group_size=block)

    return make


def intx(block: int, algorithm: str | None = None) -> Callable[[], Any]:
    """int4 without a packed layout: weights in int8 with int4's values, made float again when they are used."""

    def make() -> Any:
        import torch
        from torchao.quantization import IntxWeightOnlyConfig
        from torchao.quantization.granularity import PerGroup

        more = {} if algorithm is None else {"intx_choose_qparams_algorithm": algorithm}
        return IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(block), **more)

    return make


ROWS = {
    "int8-weight-only": quantized(int8),
    "int8-dynamic": quantized(int8_dynamic),
    "int4-opaque-32": quantized(int4_opaque(32), "bfloat16"),
    "int4-opaque-128": quantized(int4_opaque(128), "bfloat16"),
    "int4-intx-32": quantized(intx(32)),
    "int4-intx-128": quantized(intx(128)),
    "int4-intx-hqq-32": quantized(intx(32, "hqq_scale_only")),
}
