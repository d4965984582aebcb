"""Bytes of a linear layer's weight as an engine's file holds it: codes, scales, zero points and factors; no bias.

Counted are the initializers of the graph that `fuse` lowers (or the file's tensors, for GGUF), with N outputs and K inputs and
f bytes of the graph's float type, 4 on a CPU and 2 on a GPU:

    float                     N·K·f; a head that is tied to the embedding takes none of its own
    int8, fp8, per token      N·K + N·f, of int8 N zero points more (one number in place of N, where one scale is for all)
    int4, uint4 in blocks     N·K/2 + N·K/block·(f + 1/2 for a zero point)
    int8_weight_only          on ONNX Runtime MatMulNBits repeats a channel's scale for each block; elsewhere as int8
    nvfp4                     N·K/2 + N·K/16
    GGUF                      Q4_0 18 and Q8_0 34 bytes for 32 weights, float in float32
"""

from __future__ import annotations

from math import prod

from openclaw_opt.models.spec import LayerQuant

GGUF_BYTES = {"int4": 18, "int8": 34}
GGUF_BLOCK = 32
NBITS_BLOCKS = (128, 64, 32, 16)


def float_bytes(backend: str) -> int:
    """Of one number of the graph's float type, as `export: {dtype: auto}` chooses it."""
    return 2 if backend == "tensorrt" else 4


def weight_bytes(shape: tuple[int, ...], quant: LayerQuant | None, backend: str, *, tied: bool = False) -> int:
    """Bytes of a weight of `shape` [N, K] (or [N, K / groups, height, width]).

    Args:
        quant: how it is quantized; None for float.
        tied: it is the embedding's too, and takes nothing while it is float.
    """
    outputs, inputs, width = shape[0], prod(shape[1:]), float_bytes(backend)
    if quant is None:
        return 0 if tied else outputs * inputs * width
    if backend == "gguf":
        return outputs * -(-inputs // GGUF_BLOCK) * GGUF_BYTES[quant.kind]
    if quant.kind == "nvfp4":
        return outputs * inputs // 2 + outputs * inputs // (quant.block or 1)
    if quant.block is not None:
        blocks = outputs * (inputs // quant.block)
        zeros = outputs * -(-(inputs // quant.block) // 2) if quant.kind == "uint4" else 0
        return outputs * inputs // 2 + blocks * width + zeros
    if not quant.input_scale and not quant.dynamic and backend not in ("tensorrt", "openvino"):
        block = next((size for size in NBITS_BLOCKS if inputs % size == 0), GGUF_BLOCK)
        blocks = outputs * -(-inputs // block)
        return blocks * block + blocks * width
    scales = outputs if quant.per_channel else 1
    return outputs * inputs + scales * width + (scales if quant.kind == "int8" else 0)
