"""llm-compressor's `oneshot` by its own recipes; its presets' groups are 128, and rows of 32 say so in a scheme."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accuracy_worker import Made, Task
from tools_torch import linears, load, made, parameters, runner


def scheme(bits: int, group: int, symmetric: bool) -> dict[str, Any]:
    """The preset W4A16 (W4A16_ASYM) with another group."""
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group}
    return {"group_0": {"targets": ["Linear"], "weights": {**weights, "dynamic": False}}}


def modifiers(words: tuple[str, ...], quantize: dict[str, Any]) -> list[Any]:
    """The recipe: `smoothquant` or `awq` first, then `gptq` or `rtn` with the scheme."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    made: list[Any] = []
    for word in words:
        if word == "smoothquant":
            made.append(SmoothQuantModifier(smoothing_strength=0.8))
        elif word == "awq":
            made.append(AWQModifier(duo_scaling="both"))
        else:
            kind = GPTQModifier if word == "gptq" else QuantizationModifier
            made.append(kind(targets=["Linear"], ignore=["lm_head"], **quantize))
    return made


def quantized(*words: str, **quantize: Any) -> Callable[[Task], Made]:
    def make(task: Task) -> Made:
        import datasets
        import numpy as np
        import torch
        from llmcompressor import oneshot

        model = load(task)
        count, layers = parameters(model), linears(model, task)
        found = made(model, task, layers)
        ids = np.concatenate([sample["input_ids"] for sample in task.samples("calibration")])
        rows = {"input_ids": ids.tolist(), "attention_mask": np.ones_like(ids).tolist()}
        if (
            not torch.accelerator.is_available()
        ):  # its AWQ pins memory for an accelerator without asking if there is one
            torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign, assignment]
        oneshot(
            model=model, dataset=datasets.Dataset.from_dict(rows), recipe=modifiers(words, quantize), max_seq_length=ids.shape[1],
            num_calibration_samples=len(ids), shuffle_calibration_samples=False,
        )  # fmt: skip
        on = [name for name, m in model.named_modules() if getattr(m, "quantization_scheme", None) is not None]
        if set(on) != set(layers):
            raise ValueError(f"quantized are {sorted(on)}")
        return Made(runner(model, task), count, found.layers, found.weights)

    return make


ROWS = {
    "w8a8-smoothquant-gptq": quantized("smoothquant", "gptq", scheme="W8A8"),
    "w8a8-gptq": quantized("gptq", scheme="W8A8"),
    "w8a8-rtn": quantized("rtn", scheme="W8A8"),
    "w4a16-rtn-128": quantized("rtn", scheme="W4A16"),
    "w4a16-gptq-128": quantized("gptq", scheme="W4A16"),
    "w4a16-awq-128": quantized("awq", "rtn", scheme="W4A16"),
    "w4a16-asym-awq-128": quantized("awq", "rtn", scheme="W4A16_ASYM"),
    "w4a16-rtn-32": quantized("rtn", config_groups=scheme(4, 32, True)),
    "w4a16-gptq-32": quantized("gptq", config_groups=scheme(4, 32, True)),
    "w4a16-awq-32": quantized("awq", "rtn", config_groups=scheme(4, 32, True)),
    "w4a16-awq-gptq-32": quantized("awq", "gptq", config_groups=scheme(4, 32, True)),
    "w4a16-asym-gptq-32": quantized("gptq", config_groups=scheme(4, 32, False)),
}
