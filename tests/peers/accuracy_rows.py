"""Every row of the page that is a peer's: where it runs, and what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from tests.peers import speed

VENVS: dict[str, tuple[str, ...]] = {
    **speed.VENVS,
    "onnxruntime": (
        "torch==2.13.0", "transformers==5.23.0", "onnxruntime==1.32.0", "onnx==1.23.2", "onnx-ir==1.1.0", "onnxscript==0.7.2",
        "onnxruntime-genai==0.18.0", "numpy==2.4.6",
    ),
    "llmcompressor": ("torch==2.13.0", "llmcompressor==0.14.0.1", "compressed-tensors==0.19.0", "transformers==5.17.0"),
    "pruning": ("torch==2.13.0", "transformers==5.23.0", "torch-pruning==1.6.1", "numpy==2.4.6"),
}  # fmt: skip
"""Environment → its packages. nvidia-modelopt is a dependency of ours and runs beside us."""
HOMES = {
    "torchao": "torch", "torch_pruning": "pruning", "llmcompressor": "llmcompressor", "onnxruntime": "onnxruntime",
    "genai": "onnxruntime",
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """What is compared with each other: the same numbers in the same bits, of the same layers."""

    key: str
    title: str


GROUPS = {
    "decoder": (
        Group("w4-32", "int4 weights, blocks of 32, symmetric"),
        Group("u4-32", "int4 weights, blocks of 32, with zero points"),
        Group("w4-128", "int4 weights, blocks of 128, symmetric"),
        Group("u4-128", "int4 weights, blocks of 128, with zero points"),
        Group("w8", "int8 weights, a scale a channel"),
        Group("w8a8", "int8 weights and activations, one fixed scale for a layer's input"),
        Group("w8a8-token", "int8 weights and activations, scales of inputs found as it runs"),
        Group("ffn", "a fifth of the FFN channels pruned, not trained after"),
    ),
    "encoder": (
        Group("w8a8", "int8 weights and activations, one fixed scale for a layer's input"),
        Group("w8a8-token", "int8 weights and activations, scales of inputs found as it runs"),
        Group("w8", "int8 weights, a scale a channel"),
        Group("ffn", "a fifth of the FFN channels pruned, not trained after"),
    ),
    "vision": (Group("w8a8", "int8 weights and activations, one fixed scale for a layer's input"),),
}


@dataclass(frozen=True)
class Row:
    """One way of a peer's to make a model smaller."""

    name: str
    """Tool and what it is told, as in the worker's tables."""
    group: str
    """Key of the group; empty where nothing of ours has the same bits or layers."""
    bits: float
    """A quantized weight, scales (16 bits) and zero points included."""
    note: str = ""

    @property
    def tool(self) -> str:
        return self.name.split("-", 1)[0]


def _rows(group: str, bits: float, *names: str, note: str = "") -> tuple[Row, ...]:
    return tuple(Row(name, group, bits, note) for name in names)


W8A8 = ("modelopt-int8", "modelopt-int8-smoothquant", "modelopt-int8-entropy", "onnxruntime-static-minmax",
        "onnxruntime-static-entropy", "onnxruntime-static-percentile")  # fmt: skip
PEERS: dict[str, tuple[Row, ...]] = {
    "decoder": (
        *_rows("w4-32", 4.5, "modelopt-int4-rtn-32", "modelopt-int4-awq-32", "modelopt-int4-awq-full-32", "modelopt-int4-gptq-32"),
        *_rows("w4-32", 4.5, *(f"llmcompressor-w4a16-{x}-32" for x in ("rtn", "gptq", "awq", "awq-gptq"))),
        *_rows("w4-32", 4.5, "onnxruntime-rtn-32", "onnxruntime-gptq-32", "onnxruntime-gptq-order-mse-32"),
        *_rows("w4-32", 4.5, "genai-default-32", "genai-rtn-32", "genai-k-quant-32"),
        *_rows("w4-32", 4.5, "torchao-int4-intx-32", "torchao-int4-intx-hqq-32"),
        *_rows("u4-32", 4.625, "llmcompressor-w4a16-asym-gptq-32", "onnxruntime-rtn-asym-32", "onnxruntime-gptq-asym-32"),
        *_rows("u4-32", 4.625, "onnxruntime-k-quant-32", "genai-k-quant-asym-32"),
        *_rows("u4-32", 5.0, "onnxruntime-hqq-32", note="zero points in float"),
        *_rows("u4-32", 5.0, "torchao-int4-opaque-32", note="zero points in bfloat16, computes in bfloat16"),
        *_rows("w4-128", 4.125, "modelopt-int4-rtn-128", "modelopt-int4-awq-128", "modelopt-int4-gptq-128"),
        *_rows("w4-128", 4.125, *(f"llmcompressor-w4a16-{x}-128" for x in ("rtn", "gptq", "awq"))),
        *_rows("w4-128", 4.125, "onnxruntime-rtn-128", "onnxruntime-gptq-128", "genai-default-128", "genai-k-quant-128"),
        *_rows("w4-128", 4.125, "torchao-int4-intx-128"),
        *_rows("u4-128", 4.156, "llmcompressor-w4a16-asym-awq-128", "onnxruntime-rtn-asym-128"),
        *_rows("u4-128", 4.25, "onnxruntime-hqq-128", note="zero points in float"),
        *_rows("u4-128", 4.25, "torchao-int4-opaque-128", note="zero points in bfloat16, computes in bfloat16"),
        *_rows("w8", 8, "modelopt-int8-weight-only", "torchao-int8-weight-only"),
        *_rows("w8a8", 8, *W8A8),
        *_rows("w8a8-token", 8, *(f"llmcompressor-w8a8-{x}" for x in ("rtn", "gptq", "smoothquant-gptq"))),
        *_rows("w8a8-token", 8, "torchao-int8-dynamic", "onnxruntime-dynamic"),
        *_rows("", 8, "onnxruntime-dynamic-defaults", note="a scale a weight; quantizes the head and the embedding too"),
        *_rows("ffn", 32, "torch_pruning-magnitude", "torch_pruning-taylor"),
    ),
    "encoder": (
        *_rows("w8a8", 8, *W8A8),
        *_rows("", 8, "modelopt-int8-defaults", note="quantizes the inputs of norms too"),
        *_rows("w8a8-token", 8, "torchao-int8-dynamic", "onnxruntime-dynamic"),
        *_rows("", 8, "onnxruntime-dynamic-defaults", note="a scale a weight; quantizes the embedding too"),
        *_rows("w8", 8, "modelopt-int8-weight-only", "torchao-int8-weight-only"),
        *_rows("ffn", 32, "torch_pruning-magnitude"),
    ),
    "vision": _rows("w8a8", 8, *W8A8),
}  # fmt: skip
NOT_RUN = {
    "GPTQ by onnxruntime-genai's builder": "it has none (`algo_config`: default, rtn, k_quant); it reads checkpoints that other tools "
    "have quantized, whose accuracy is that tool's",
    "optimum-intel / OpenVINO": "not driven by this script; tests/peers/speed.py runs its int8 and int4",
}
