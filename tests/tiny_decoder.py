"""A portable decoder graph with random weights, written with onnx.helper alone: what the exporter emits, without torch.

Inputs and outputs are the portable contract (see `openclaw_opt.graph`): past caches in, present caches out, an explicit
mask, standard operators of opset 23. Quantized linears carry Q/DQ with the weight already in its low-bit type.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from openclaw_opt.artifacts import Graph, GraphFacts, KvShape, LayerFormat

NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
ELEMENT = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
LOW_BIT = {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn}
LARGEST = {"int8": 127.0, "fp8": 448.0, "int4": 7.0}


@dataclass(frozen=True)
class Tiny:
    """Sizes of a tiny decoder; `format` is '', int8, fp8, nvfp4 or int4 (`block` elements of K share a scale)."""

    layers: int = 2
    hidden: int = 64
    q_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    ffn: int = 128
    vocab: int = 96
    context: int = 32
    dtype: str = "float16"
    format: str = ""
    block: int = 32
    windows: tuple[int | None, ...] = (None, None)
    softcap: float = 0.0

    @property
    def kv(self) -> tuple[KvShape, ...]:
        return tuple(
            KvShape(q_heads=self.q_heads, kv_heads=self.kv_heads, head_dim=self.head_dim, window=window)
            for window in self.windows[: self.layers]
        )


@dataclass
class Writer:
    """Collects nodes and initializers; `op` returns the name of the node's first output."""

    tiny: Tiny
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    quantized: list[LayerFormat] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def op(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def constant(self, name: str, value: np.ndarray) -> str:
        if all(weight.name != name for weight in self.weights):
            self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(f"ints.{'_'.join(map(str, values))}", np.array(values, np.int64))

    def matrix(self, k: int, n: int) -> np.ndarray:
        return self.rng.standard_normal((k, n)).astype(np.float32) * k**-0.5

    def linear(self, x: str, name: str, k: int, n: int) -> str:
        kind, dtype = self.tiny.format, NUMPY[self.tiny.dtype]
        weight = self.matrix(k, n)
        if not kind or name == "head":
            return self.op("MatMul", [x, self.constant(f"{name}.weight", weight.astype(dtype))], f"{name}.matmul")
        self.quantized.append(
            LayerFormat(name=name, format=kind, block={"int4": self.tiny.block, "nvfp4": 16}.get(kind))
        )
        if kind == "int4":
            return self.op("MatMul", [x, self.block_weight(name, weight)], f"{name}.matmul")
        if kind == "nvfp4":
            return self.op("MatMul", [self.fp4_input(x, name, k), _nvfp4(self, name, weight)[1]], f"{name}.matmul")
        low = LOW_BIT[kind]
        zero, scale = self.constant(f"{name}.zero", np.array(0, low)), np.array(4.0 / LARGEST[kind], dtype)
        scale_name = self.constant(f"{name}.input_scale", scale)
        quantized = self.op("QuantizeLinear", [x, scale_name, zero], f"{name}.quantize")
        x = self.op("DequantizeLinear", [quantized, scale_name, zero], f"{name}.dequantize")
        scales = (np.abs(weight).max(0) / LARGEST[kind]).astype(dtype)
        low_bit = weight / scales.astype(np.float32)
        if kind == "int8":
            low_bit = low_bit.round()
        names = [
            self.constant(f"{name}.weight_q", low_bit.astype(low)),
            self.constant(f"{name}.weight_scale", scales),
            self.constant(f"{name}.weight_zero", np.zeros(n, low)),
        ]
        return self.op(
            "MatMul", [x, self.op("DequantizeLinear", names, f"{name}.weight_dequantize", axis=1)], f"{name}.matmul"
        )

    def fp4_input(self, x: str, name: str, k: int) -> str:
        """Q/DQ to E2M1 in blocks of 16, the E4M3 block scales computed from the blocks' largest values."""
        step, scope = np.float32(4.0 / (6 * 448)), f"{name}.input"
        split = self.op("Reshape", [x, self.ints(0, 0, k // 16, 16)], f"{scope}_blocks")
        size = self.op(
            "ReduceMax", [self.op("Abs", [split], f"{scope}_abs"), self.ints(-1)], f"{scope}_max", keepdims=0
        )
        size = self.op("Cast", [size], f"{scope}_wide", to=TensorProto.FLOAT)
        size = self.op("Div", [size, self.constant(f"{scope}_largest", step * 6)], f"{scope}_ratio")
        scale = self.op("Cast", [size], f"{scope}_round", to=TensorProto.FLOAT8E4M3FN)
        scale = self.op("DequantizeLinear", [scale, self.constant(f"{scope}_scale", step)], f"{scope}_dequantize")
        scale = self.op("Cast", [scale], f"{scope}_half", to=ELEMENT[self.tiny.dtype])
        more = {"axis": -1, "block_size": 16}
        low = self.op("QuantizeLinear", [x, scale], f"{scope}_q", output_dtype=TensorProto.FLOAT4E2M1, **more)
        return self.op("DequantizeLinear", [low, scale], f"{scope}_dq", **more)

    def block_weight(self, name: str, weight: np.ndarray) -> str:
        block, (k, n) = self.tiny.block, weight.shape
        scales = np.abs(weight.reshape(k // block, block, n)).max(1) / LARGEST["int4"]
        low_bit = (weight / scales.repeat(block, 0)).round().clip(-8, 7).astype(ml_dtypes.int4)
        names = [
            self.constant(f"{name}.weight_q", low_bit),
            self.constant(f"{name}.weight_scale", scales.astype(NUMPY[self.tiny.dtype])),
        ]
        return self.op("DequantizeLinear", names, f"{name}.weight_dequantize", axis=0, block_size=block)

    def norm(self, x: str, name: str) -> str:
        gain = self.rng.uniform(0.5, 1.5, self.tiny.hidden).astype(NUMPY[self.tiny.dtype])
        return self.op("RMSNormalization", [x, self.constant(f"{name}.weight", gain)], f"{name}.norm", epsilon=1e-5)

    def heads(self, x: str, name: str, count: int) -> str:
        shaped = self.op("Reshape", [x, self.ints(0, 0, count, self.tiny.head_dim)], f"{name}.reshape")
        return self.op("Transpose", [shaped], f"{name}.transpose", perm=[0, 2, 1, 3])

    def rotary(self, x: str, name: str) -> str:
        half, dtype = self.tiny.head_dim // 2, NUMPY[self.tiny.dtype]
        angle = np.arange(self.tiny.context)[:, None] * (10000.0 ** (-np.arange(half) / half))[None]
        cos, sin = (
            self.constant("rope.a.cos", np.cos(angle).astype(dtype)),
            self.constant("rope.a.sin", np.sin(angle).astype(dtype)),
        )
        return self.op("RotaryEmbedding", [x, cos, sin, "position_ids"], f"{name}.rotary")

    def mask(self, window: int | None) -> str:
        """[B, 1, S, P+S] bool: real, not later than the query, not further back than the window."""
        name = f"mask.{window}"
        if any(node.name == f"{name}.visible" for node in self.nodes):
            return f"{name}.visible_out"
        total = self.op("Shape", ["attention_mask"], f"{name}.total", start=1, end=2)
        key = self.op(
            "Range",
            [
                self.constant("zero", np.array(0)),
                self.op("Squeeze", [total], f"{name}.n"),
                self.constant("one", np.array(1)),
            ],
            f"{name}.key",
        )
        key = self.op("Unsqueeze", [key, self.ints(0, 1, 2)], f"{name}.key4")
        query = self.op("Unsqueeze", ["position_ids", self.ints(1, 3)], f"{name}.query")
        visible = self.op("LessOrEqual", [key, query], f"{name}.causal")
        if window is not None:
            first = self.op("Sub", [query, self.constant(f"{name}.window", np.array(window))], f"{name}.first")
            visible = self.op("And", [visible, self.op("Greater", [key, first], f"{name}.recent")], f"{name}.windowed")
        real = self.op("Cast", ["attention_mask"], f"{name}.real", to=TensorProto.BOOL)
        real = self.op("Unsqueeze", [real, self.ints(1, 2)], f"{name}.real4")
        return self.op("And", [visible, real], f"{name}.visible")

    def layer(self, x: str, index: int) -> str:
        tiny, prefix = self.tiny, f"layers.{index}"
        q_width, kv_width = tiny.q_heads * tiny.head_dim, tiny.kv_heads * tiny.head_dim
        qkv = self.linear(self.norm(x, f"{prefix}.input_norm"), f"{prefix}.qkv", tiny.hidden, q_width + 2 * kv_width)
        split = [f"{prefix}.split_{part}" for part in "qkv"]
        self.nodes.append(
            helper.make_node("Split", [qkv, self.ints(q_width, kv_width, kv_width)], split, f"{prefix}.split", axis=-1)
        )
        query = self.rotary(self.heads(split[0], f"{prefix}.q", tiny.q_heads), f"{prefix}.q")
        key = self.rotary(self.heads(split[1], f"{prefix}.k", tiny.kv_heads), f"{prefix}.k")
        value = self.heads(split[2], f"{prefix}.v", tiny.kv_heads)
        for part, new in (("key", key), ("value", value)):
            past, present = f"past_key_values.{index}.{part}", f"present.{index}.{part}"
            self.nodes.append(helper.make_node("Concat", [past, new], [present], f"{prefix}.concat_{part}", axis=2))
        inputs = [query, f"present.{index}.key", f"present.{index}.value", self.mask(tiny.windows[index])]
        more = {"softcap": tiny.softcap} if tiny.softcap else {}
        mixed = self.op("Attention", inputs, f"{prefix}.attention", scale=tiny.head_dim**-0.5, **more)
        mixed = self.op("Transpose", [mixed], f"{prefix}.merge", perm=[0, 2, 1, 3])
        mixed = self.op("Reshape", [mixed, self.ints(0, 0, q_width)], f"{prefix}.flat")
        x = self.op("Add", [x, self.linear(mixed, f"{prefix}.o", q_width, tiny.hidden)], f"{prefix}.add_attention")
        both = self.linear(self.norm(x, f"{prefix}.post_norm"), f"{prefix}.gate_up", tiny.hidden, 2 * tiny.ffn)
        gate, up = f"{prefix}.gate", f"{prefix}.up"
        self.nodes.append(helper.make_node("Split", [both], [gate, up], f"{prefix}.split_mlp", axis=-1, num_outputs=2))
        gate = self.op("Mul", [gate, self.op("Sigmoid", [gate], f"{prefix}.sigmoid")], f"{prefix}.silu")
        down = self.linear(self.op("Mul", [gate, up], f"{prefix}.act"), f"{prefix}.down", tiny.ffn, tiny.hidden)
        return self.op("Add", [x, down], f"{prefix}.add_mlp")


def write_tiny(tiny: Tiny, folder: Path) -> Graph:
    """model.onnx and graph.json of `tiny`, checked by onnx.checker."""
    writer = Writer(tiny)
    folder.mkdir(parents=True, exist_ok=True)
    table = writer.matrix(tiny.vocab, tiny.hidden) * 8
    x = writer.op(
        "Gather", [writer.constant("embed.weight", table.astype(NUMPY[tiny.dtype])), "input_ids"], "embed.gather"
    )
    for index in range(tiny.layers):
        x = writer.layer(x, index)
    x = writer.linear(writer.norm(x, "final"), "head", tiny.hidden, tiny.vocab)
    writer.nodes.append(helper.make_node("Cast", [x], ["logits"], "head.cast", to=TensorProto.FLOAT))
    element, model = ELEMENT[tiny.dtype], "model.onnx"
    inputs = [
        ("input_ids", ["batch", "length"]),
        ("attention_mask", ["batch", "total"]),
        ("position_ids", ["batch", "length"]),
    ]
    infos = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in inputs]
    outs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", tiny.vocab])]
    for index in range(tiny.layers):
        for part in ("key", "value"):
            shape = ["batch", tiny.kv_heads, "past", tiny.head_dim]
            infos.append(helper.make_tensor_value_info(f"past_key_values.{index}.{part}", element, shape))
            outs.append(
                helper.make_tensor_value_info(f"present.{index}.{part}", element, [*shape[:2], "total", shape[3]])
            )
    graph = helper.make_graph(writer.nodes, "tiny", infos, outs, writer.weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save_model(proto, folder / model, save_as_external_data=True, location="model.onnx.data", size_threshold=256)
    result = Graph(folder)
    result.write_facts(
        GraphFacts(
            task="decoder", dialect="portable", dtype=tiny.dtype, family="llama", opset=23, vocab=tiny.vocab,
            context=tiny.context, hidden=tiny.hidden, kv=tiny.kv, quantized=tuple(writer.quantized),
        )
    )  # fmt: skip
    return result


def write_linear(folder: Path, kind: str, k: int = 64, n: int = 128) -> Path:
    """One linear layer `lin` in a form TensorRT takes and does not realise: `nvfp4_weight_only`, `fp8_weight_only`, `mxfp8`."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((k, n)) * k**-0.5).astype(np.float32)
    writer = Writer(Tiny())
    x, dequantized = {"nvfp4_weight_only": _nvfp4, "fp8_weight_only": _fp8, "mxfp8": _mxfp8}[kind](
        writer, "lin", weight
    )
    writer.nodes.append(helper.make_node("MatMul", [x, dequantized], ["y"], name="lin/MatMul"))
    half = TensorProto.FLOAT16
    infos = [helper.make_tensor_value_info(name, half, ["batch", size]) for name, size in (("x", k), ("y", n))]
    graph = helper.make_graph(writer.nodes, kind, infos[:1], infos[1:], writer.weights)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("trt", 1)]
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=11), path)
    return path


def _nvfp4(writer: Writer, name: str, weight: np.ndarray) -> tuple[str, str]:
    k, n = weight.shape
    step = np.float32(np.abs(weight).max() / (6 * 448))
    scale = (np.abs(weight.reshape(k // 16, 16, n)).max(1) / 6 / step).astype(ml_dtypes.float8_e4m3fn)
    low = (weight / (scale.astype(np.float32) * step).repeat(16, 0)).astype(ml_dtypes.float4_e2m1fn)
    names = [writer.constant(f"{name}.weight_scale", scale), writer.constant(f"{name}.weight_global", step)]
    wide = writer.op("DequantizeLinear", names, f"{name}.weight_scale/DequantizeLinear")
    wide = writer.op("Cast", [wide], f"{name}.weight_scale/Cast", to=TensorProto.FLOAT16)
    names = [writer.constant(f"{name}.weight_q", low), wide]
    return "x", writer.op("DequantizeLinear", names, f"{name}.weight/DequantizeLinear", axis=0, block_size=16)


def _fp8(writer: Writer, name: str, weight: np.ndarray) -> tuple[str, str]:
    scale = (np.abs(weight).max(0) / 448).astype(np.float16)
    low = (weight / scale).astype(ml_dtypes.float8_e4m3fn)
    names = [writer.constant(f"{name}.weight_q", low), writer.constant(f"{name}.weight_scale", scale)]
    return "x", writer.op("DequantizeLinear", names, f"{name}.weight/DequantizeLinear", axis=1)


def _mxfp8(writer: Writer, name: str, weight: np.ndarray) -> tuple[str, str]:
    k, n = weight.shape
    kinds = {"domain": "trt", "block_size": 32}
    low = ["x_q", "x_s"]
    more = {"axis": -1, "output_dtype": int(TensorProto.FLOAT8E4M3FN), **kinds}
    writer.nodes.append(helper.make_node("TRT_MXFP8DynamicQuantize", ["x"], low, name=f"{name}.input/Quantize", **more))
    half = {"output_dtype": int(TensorProto.FLOAT16), **kinds}
    x = writer.op("TRT_MXFP8DequantizeLinear", low, f"{name}.input/Dequantize", axis=-1, **half)
    power = np.ceil(np.log2(np.abs(weight.reshape(k // 32, 32, n)).max(1) / 448))
    names = [
        writer.constant(f"{name}.weight_q", (weight / 2.0 ** power.repeat(32, 0)).astype(ml_dtypes.float8_e4m3fn)),
        writer.constant(f"{name}.weight_scale", (power + 127).astype(np.uint8)),
    ]
    return x, writer.op("TRT_MXFP8DequantizeLinear", names, f"{name}.weight/Dequantize", axis=0, **half)


def write_fp8_attention(folder: Path, heads: int = 2, head_dim: int = 16) -> Graph:
    """A graph of dialect `tensorrt`: one attention whose q, k and v went through FP8 Q/DQ, which TensorRT runs in half precision.

    `to_tensorrt.lower` refuses it; only a graph written by hand gets to the builder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer, half = Writer(Tiny()), TensorProto.FLOAT16
    names = [writer.constant("scale", np.array(0.05, np.float16)), writer.constant("zero", np.array(0, LOW_BIT["fp8"]))]
    inputs = []
    for part in "qkv":
        low = writer.op("QuantizeLinear", [part, *names], f"attention.{part}/QuantizeLinear")
        inputs.append(writer.op("DequantizeLinear", [low, *names], f"attention.{part}/DequantizeLinear"))
    y = writer.op("Attention", inputs, "attention/Attention", scale=head_dim**-0.5)
    shape = ["batch", heads, "length", head_dim]
    infos = [helper.make_tensor_value_info(part, half, shape) for part in "qkv"]
    outputs = [helper.make_tensor_value_info(y, half, shape)]
    proto = helper.make_graph(writer.nodes, "fp8_attention", infos, outputs, writer.weights)
    onnx.save(
        helper.make_model(proto, opset_imports=[helper.make_opsetid("", 24)], ir_version=11), folder / "model.onnx"
    )
    graph = Graph(folder)
    asked = (LayerFormat(name="attention", format="fp8"),)
    facts = {"task": "encoder", "dialect": "tensorrt", "dtype": "float16", "family": "bert", "opset": 24}
    graph.write_facts(GraphFacts.model_validate({**facts, "quantized": asked}))
    return graph
