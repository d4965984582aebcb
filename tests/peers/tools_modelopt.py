"""nvidia-modelopt by its own configurations: only what stays float and, where a row says so, the block is ours."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from accuracy_worker import Made, Task
from tools_torch import calibrator, head, linears, load, made, parameters

ELSEWHERE = ("LayerNorm", "layernorm", "normalization", "pool")
"""Modules that are no linear layer and have quantizers too: off, so that both sides quantize the same."""


def config_of(
    name: str, task: Task, block: int | None = None, algorithm: Any = None, *, off: bool = True
) -> dict[str, Any]:
    """One of `mtq`'s configurations; the head off, as is modelopt's default for decoders, and with `off` what no layer is."""
    import modelopt.torch.quantization as mtq

    config = copy.deepcopy(getattr(mtq, name))
    for one in config["quant_cfg"]:
        if block is not None and "block_sizes" in (one.get("cfg") or {}):
            one["cfg"]["block_sizes"][-1] = block
    words = (*head(task), *ELSEWHERE) if off else head(task)
    config["quant_cfg"] += [{"quantizer_name": f"*{word}*", "enable": False} for word in words]
    return config | ({} if algorithm is None else {"algorithm": algorithm})


def quantized(
    name: str, block: int | None = None, algorithm: Any = None, *, off: bool = True
) -> Callable[[Task], Made]:
    def make(task: Task) -> Made:
        import modelopt.torch.quantization as mtq

        model = load(task)
        count, layers = parameters(model), list(linears(model, task))
        mtq.quantize(model, config_of(name, task, block, algorithm, off=off), forward_loop=calibrator(task))
        return _counted(model, task, count, layers, off=off)

    return make


def histogram(method: str) -> Callable[[Task], Made]:
    """INT8_DEFAULT_CFG with modelopt's histogram calibrator on activations, which `mtq.quantize` itself cannot finish."""

    def make(task: Task) -> Made:
        import modelopt.torch.quantization as mtq
        from modelopt.torch.quantization.calib import HistogramCalibrator

        model = load(task)
        count, layers = parameters(model), list(linears(model, task))
        mtq.quantize(model, config_of("INT8_DEFAULT_CFG", task), forward_loop=calibrator(task))
        inputs = [m.input_quantizer for name, m in model.named_modules() if name in set(layers)]
        for one in inputs:
            one._calibrator = HistogramCalibrator(num_bits=8, axis=None, unsigned=False)
            one.disable_quant()
            one.enable_calib()
        calibrator(task)(model)
        for one in inputs:
            one.load_calib_amax(method)
            one.disable_calib()
            one.enable_quant()
        return _counted(model, task, count, layers)

    return make


def _counted(model: Any, task: Task, count: int, layers: list[str], *, off: bool = True) -> Made:
    """Only layers whose weight quantizer is on. Raises ValueError where others than asked for are."""
    on = {name: m for name, m in model.named_modules() if name in layers and m.weight_quantizer.is_enabled}
    active = [name for name, m in model.named_modules() if "quantizer" in name and getattr(m, "is_enabled", False)]
    others = [name for name in active if name.rsplit(".", 1)[0] not in layers]
    if len(on) != len(layers) or (off and others):
        raise ValueError(f"{sorted(set(layers) - set(on))} stayed float, and {others} did not")
    found = made(model, task, on)
    return Made(found.run, count, found.layers, found.weights)


ROWS = {
    "int8": quantized("INT8_DEFAULT_CFG"),
    "int8-defaults": quantized("INT8_DEFAULT_CFG", off=False),
    "int8-smoothquant": quantized("INT8_SMOOTHQUANT_CFG"),
    "int8-entropy": histogram("entropy"),
    "int8-weight-only": quantized("INT8_WEIGHT_ONLY_CFG"),
    "int4-rtn-128": quantized("INT4_BLOCKWISE_WEIGHT_ONLY_CFG"),
    "int4-awq-128": quantized("INT4_AWQ_CFG"),
    "int4-gptq-128": quantized("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", algorithm={"method": "gptq"}),
    "int4-rtn-32": quantized("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32),
    "int4-awq-32": quantized("INT4_AWQ_CFG", 32),
    "int4-awq-full-32": quantized("INT4_AWQ_CFG", 32, {"method": "awq_full"}),
    "int4-gptq-32": quantized("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32, {"method": "gptq"}),
}
