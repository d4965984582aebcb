"""Number formats: a row each. Nothing here computes; `numerics/` and the passes read the rows.

`bits_per_weight` counts the scales: a block of 32 four-bit weights with one half-precision scale is 4 + 16/32 = 4.5.
`compute` is the least NVIDIA compute capability whose tensor cores (or, for weight-only, whose fused kernels) realise it
in TensorRT; it was tried with the builder, see docs/design.md. `backends` names the runtimes that realise the format: the
others would run it as half precision or emulate it, and a recipe that asks for that is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from openclaw_opt.errors import RecipeError, nearest


@dataclass(frozen=True)
class Format:
    """One row.

    Attributes:
        name: the recipe's word.
        title: for people.
        weight: element type of the stored weight (an ONNX element type name).
        activation: element type activations are quantized to; empty for weight-only.
        block: default number of elements along the input axis that share a scale; None for one scale a channel or tensor.
        scale_bits: bits of one weight scale and, where there is one, its zero point.
        weight_bits: bits of one weight.
        compute: least compute capability, (major, minor).
        backends: the runtimes that realise it.
        source: where the format is defined.
        limits: why the runtimes that are not in `backends` do not realise it, where that is known.
        dynamic: scales of activations are found for each token when it runs.
    """

    name: str
    title: str
    weight: str
    activation: str
    weight_bits: float
    scale_bits: int
    block: int | None
    compute: tuple[int, int]
    backends: tuple[str, ...]
    source: str
    limits: str = ""
    dynamic: bool = False

    @property
    def weight_only(self) -> bool:
        return not self.activation

    @property
    def kind(self) -> Literal["weight-only", "weight and activation"]:
        return "weight-only" if self.weight_only else "weight and activation"

    def bits_per_weight(self, block: int | None = None) -> float:
        """Bits a weight takes with its share of the scales; per-channel scales are counted as nothing."""
        block = block or self.block
        return self.weight_bits + (self.scale_bits / block if block else 0.0)


ONNX_SPEC = "https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html"
FP8_PAPER = "https://arxiv.org/abs/2209.05433"
NVFP4_NOTE = "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html"
NO_ZERO = "it takes no zero point but 0"
NO_TOKEN = "it has no int8 kernel with scales found at run time"

_ROWS = (
    Format("int8", "INT8 weights and activations", "INT8", "INT8", 8, 32, None, (7, 5), ("onnxruntime", "tensorrt"), ONNX_SPEC),
    Format("int8_per_token", "INT8 weights, activations by token", "INT8", "INT8", 8, 32, None, (7, 5), ("onnxruntime",), ONNX_SPEC, NO_TOKEN, dynamic=True),
    Format("int8_weight_only", "INT8 weights", "INT8", "", 8, 32, None, (7, 5), ("onnxruntime", "tensorrt", "gguf", "openvino"), ONNX_SPEC),
    Format("int4", "INT4 weights in blocks", "INT4", "", 4, 16, 32, (8, 0), ("onnxruntime", "tensorrt", "gguf", "openvino"), ONNX_SPEC),
    Format("uint4", "INT4 weights in blocks with zero points", "UINT4", "", 4, 20, 32, (8, 0), ("onnxruntime", "openvino"), ONNX_SPEC, NO_ZERO),
    Format("fp8", "FP8 E4M3 weights and activations", "FLOAT8E4M3FN", "FLOAT8E4M3FN", 8, 32, None, (8, 9), ("tensorrt",), FP8_PAPER),
    Format("nvfp4", "NVFP4 weights and activations", "FLOAT4E2M1", "FLOAT4E2M1", 4, 8, 16, (10, 0), ("tensorrt",), NVFP4_NOTE),
)  # fmt: skip

UNREALISED: dict[str, tuple[str, str]] = {
    "w4a8": (
        "neither backend takes INT4 weights with INT8 activations as a format; ONNX Runtime's INT4 kernel rounds the activations of "
        "each block to int8 at fuse's accuracy_level 4",
        "format: int4",
    ),
    "mxfp8": ("TensorRT takes it, expands the weights and multiplies in half precision; ONNX Runtime does not take it", "format: fp8"),
    "nvfp4_weight_only": ("TensorRT takes it, expands the weights and multiplies in half precision", "format: nvfp4, or int4"),
    "svdquant": ("its low-rank half is a matrix of its own beside the low-bit one, and neither backend has a kernel for both", "format: nvfp4"),
}  # fmt: skip
"""Formats people ask for that no runtime realises: why, and what is nearest. docs/log.md says what was tried."""


@dataclass(frozen=True)
class CacheFormat:
    """A number format of the key/value cache: one row.

    Attributes:
        name: the recipe's word.
        bits: of one number, without its scale.
        lowest, top: least and largest code; a scale is the range over `top`.
        blocks: channels that share a scale in llama.cpp, which finds it for each token.
        backends: the runtimes that hold it.
    """

    name: str
    bits: int
    lowest: int
    top: int
    blocks: int
    backends: tuple[str, ...]


CACHES: dict[str, CacheFormat] = {
    row.name: row
    for row in (
        CacheFormat("int8", 8, -128, 127, 32, ("onnxruntime", "gguf", "openvino")),
        CacheFormat("int4", 4, -8, 7, 32, ("onnxruntime", "gguf", "openvino")),
    )
}
NO_CACHE: dict[str, str] = {
    "tensorrt": "its in-place cache update takes float32, float16 and bfloat16 alone",
    "fp8": "ONNX Runtime has no such kernel on a CPU, llama.cpp no such type, and TensorRT's in-place update refuses it",
    "cuda": "ONNX Runtime's CUDA kernel was not tried, and nothing that was not run is promised",
    "fastest": "the runtimes round a cache differently, so that a build must name one",
}
"""Why a backend, a format or a device does not hold a low-bit cache. docs/log.md says what was tried."""

FORMATS: dict[str, Format] = {row.name: row for row in _ROWS}


def format_named(name: str) -> Format:
    """The row of that name. Raises RecipeError with the nearest word."""
    if name not in FORMATS:
        raise RecipeError(f"unknown number format {name!r}", fix=nearest(name, FORMATS))
    return FORMATS[name]
