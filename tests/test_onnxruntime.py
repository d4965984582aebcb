"""The ONNX Runtime lowering, its sessions, its engine and its receipt, on tiny models of every decoder family."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import onnxruntime_genai as og
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForCausalLM

from openclaw_opt.artifacts import Graph, GraphFacts, LayerFormat, Model
from openclaw_opt.backends import onnxruntime as backend
from openclaw_opt.backends import ort_receipt
from openclaw_opt.backends.genai_config import genai_config
from openclaw_opt.backends.ort_receipt import Kernel
from openclaw_opt.backends.ort_sessions import OrtDecoder, OrtGeneric, open_graph, session_options
from openclaw_opt.backends.torch_eager import open_eager
from openclaw_opt.errors import RecipeError, VerificationError
from openclaw_opt.graph import fuse_matmul_nbits, fuse_unsigned_weights, ir_tools
from openclaw_opt.graph.fuse_matmul_nbits import pack
from openclaw_opt.graph.to_onnxruntime import EXACT, FAST, lower, with_accuracy_level
from openclaw_opt.models.export import export_graph
from openclaw_opt.models.linear import QuantConv2d, QuantLinear, QuantParts, replace_layer
from openclaw_opt.models.load import load_model
from openclaw_opt.models.spec import read_facts
from openclaw_opt.models.store import open_model, save_model
from openclaw_opt.numerics.grid import grid_of
from openclaw_opt.numerics.quantization import channel_amax, quantize, quantize_blocks, scale_of
from openclaw_opt.targets import target_named
from tests.tiny import DECODERS, open_tiny, write_checkpoint
from tests.tiny_decoder import Tiny, write_tiny

CLOSE = 1e-4
LENGTHS = np.array([5, 12, 9])
STEPS = 25
IDS = np.random.default_rng(0).integers(3, 256, (3, 40))


@dataclass(frozen=True)
class Made:
    checkpoint: Path
    model: Model
    portable: Graph
    lowered: Graph


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    known: dict[str, Made] = {}

    def get(family: str) -> Made:
        if family not in known:
            root = tmp_path_factory.mktemp(family)
            checkpoint = write_checkpoint(root / "c", family)
            model, _, _ = load_model(open_tiny(checkpoint), root / "m")
            portable = export_graph(model, root / "p", dtype="float32")
            known[family] = Made(checkpoint, model, portable, lower(portable, root / "o"))
        return known[family]

    return get


def opened(graph: Graph, **facts: Any) -> OrtDecoder:
    return OrtDecoder(graph, options=session_options(graph, threads=1), **facts)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference relative to the largest value of `a`."""
    return float(np.abs(a - b).max() / np.abs(a).max())


def ragged(session: Any, steps: int = STEPS) -> np.ndarray:
    """Prefill of unequal lengths in one batch, then `steps` tokens: [batch, steps + 1, vocab]."""
    rows = [session.prefill(IDS[:, : LENGTHS.max()], LENGTHS)]
    rows += [session.decode(IDS[np.arange(3), LENGTHS + step]) for step in range(steps)]
    return np.stack(rows, 1)


def alone(session: Any, steps: int = STEPS) -> np.ndarray:
    """The same positions of each sequence, by itself and without a cache."""
    rows = [[session.logits(IDS[b : b + 1, : n + s])[0, -1] for s in range(steps + 1)] for b, n in enumerate(LENGTHS)]
    return np.array(rows)


# ---- the lowering of float graphs


@pytest.mark.parametrize("family", DECODERS)
def test_a_lowered_family_computes_what_the_portable_graph_does(family: str, made: Callable[[str], Made]) -> None:
    """Past the window (8), past the original rope length (16), in a ragged batch, step by step."""
    portable, lowered = opened(made(family).portable), opened(made(family).lowered)
    assert apart(portable.logits(IDS), lowered.logits(IDS)) < CLOSE
    ours = ragged(lowered)
    assert apart(ragged(portable), ours) < CLOSE
    assert apart(alone(portable, STEPS), ours) < CLOSE


@pytest.mark.parametrize("family", DECODERS)
def test_every_layer_is_fused_and_counted(family: str, made: Callable[[str], Made]) -> None:
    graph = made(family).lowered
    proto = onnx.load(str(graph.onnx), load_external_data=False)
    kinds = [node.op_type for node in proto.graph.node]
    layers = len(graph.facts.kv)
    assert graph.facts.fusions["GroupQueryAttention"] == kinds.count("GroupQueryAttention") == layers
    assert graph.facts.fusions["SkipNorm"] >= 2 * layers
    assert not {"Attention", "Concat"} & set(kinds)
    rotated = [
        a.i
        for n in proto.graph.node
        if n.op_type == "GroupQueryAttention"
        for a in n.attribute
        if a.name == "do_rotary"
    ]
    outside = family in ("phi3", "phi3-partial", "gpt2")  # computed rows, a table of width 4, no rotation
    assert rotated == [0 if outside else 1] * layers
    assert ("position_ids" in {value.name for value in proto.graph.input}) == outside


def test_an_attention_that_does_not_fit_is_named_with_its_reason(made: Callable[[str], Made], tmp_path: Path) -> None:
    source = made("llama").portable
    proto = onnx.load(str(source.onnx))
    node = next(node for node in proto.graph.node if node.op_type == "Attention")
    del node.input[3:]
    onnx.save(proto, str(tmp_path / "model.onnx"))
    broken = Graph(tmp_path)
    broken.write_facts(source.facts)
    with pytest.raises(
        VerificationError, match=r"GroupQueryAttention applied 0 times and should have 2 times: .*no explicit mask"
    ):
        lower(broken, tmp_path / "out")


def test_layers_that_share_a_mask_must_share_a_window(made: Callable[[str], Made], tmp_path: Path) -> None:
    source = made("llama").portable
    onnx.save(onnx.load(str(source.onnx)), str(tmp_path / "model.onnx"))
    wrong = Graph(tmp_path)
    kv = source.facts.kv
    wrong.write_facts(source.facts.model_copy(update={"kv": (kv[0].model_copy(update={"window": 4}), *kv[1:])}))
    with pytest.raises(VerificationError, match="share one mask"):
        lower(wrong, tmp_path / "out")


def test_a_lowered_graph_cannot_be_lowered_again(made: Callable[[str], Made], tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="dialect 'onnxruntime'"):
        lower(made("llama").lowered, tmp_path)


def test_a_shorter_context_bounds_the_cache(made: Callable[[str], Made], tmp_path: Path) -> None:
    graph = lower(made("llama").portable, tmp_path, context=20)
    assert graph.facts.context == 20
    session = opened(graph)
    session.prefill(IDS[:, :20])
    with pytest.raises(RecipeError, match="21 tokens exceeds this session's capacity of 20"):
        session.decode(IDS[:, 20])


# ---- quantized graphs


def parts(weight: Any, kind: str, bias: Any = None) -> QuantParts:
    """Round to nearest; int8 has static activations up to 12, which tiny layers stay within."""
    if kind == "int4":
        codes, scale = quantize_blocks(weight, 32)
        return QuantParts(format="int4", kind="int4", weight_q=codes, weight_scale=scale, block=32)
    if kind == "uint4":
        grid = grid_of(weight, "uint4", 32)
        assert grid.zero is not None
        codes, zero = grid.codes(weight).to(torch.uint8), grid.zero.to(torch.uint8)
        return QuantParts("uint4", "uint4", codes, grid.scale, block=32, weight_zero=zero)
    amax = channel_amax(weight)
    scale = None if kind != "int8" else scale_of(torch.tensor(12.0), "int8")
    codes = quantize(weight, amax, "int8")
    return QuantParts(
        format=kind,
        kind="int8",
        weight_q=codes,
        weight_scale=scale_of(amax, "int8").squeeze(),
        input_scale=scale,
        bias=bias,
        dynamic=kind == "int8_per_token",
    )


@pytest.fixture(scope="module")
def quantized(made: Callable[[str], Made], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Graph]:
    """The portable graph of tiny Llama with every layer in a format."""
    known: dict[str, Graph] = {}

    def get(kind: str) -> Graph:
        if kind not in known:
            root, source = tmp_path_factory.mktemp(kind), made("llama")
            module = open_model(source.model)
            for name, layer in list(module.named_modules()):
                if isinstance(layer, nn.Linear) and name != "head":
                    replace_layer(module, name, QuantLinear(parts(layer.weight, kind)))
            model = save_model(module, read_facts(source.model), root / "m", source.checkpoint)
            known[kind] = export_graph(model, root / "p", dtype="float32")
        return known[kind]

    return get


@pytest.mark.parametrize("kind", ["int8", "int8_weight_only", "int4", "uint4"])
def test_a_quantized_rewrite_is_exact(kind: str, quantized: Callable[[str], Graph], tmp_path: Path) -> None:
    portable = quantized(kind)
    lowered = lower(portable, tmp_path, accuracy_level=EXACT)
    assert (
        lowered.facts.fusions["UnsignedWeights" if kind == "int8" else "MatMulNBits"]
        == len(portable.facts.quantized)
        == 8
    )
    # One activation that rounds to the other side of a half moves an int8 layer by one step.
    tolerance = 2e-2 if kind == "int8" else CLOSE
    assert apart(opened(portable).logits(IDS), opened(lowered).logits(IDS)) < tolerance
    assert apart(ragged(opened(portable), 6), ragged(opened(lowered), 6)) < tolerance


def test_a_scale_a_token_runs_in_integers(quantized: Callable[[str], Graph], tmp_path: Path) -> None:
    portable = quantized("int8_per_token")
    lowered = lower(portable, tmp_path / "graph")
    assert apart(opened(portable).logits(IDS), opened(lowered).logits(IDS)) < 2e-2
    engine = backend.build(lowered, target_named("host"), tmp_path / "engine")
    assert {row.realised for row in engine.facts.receipt} <= {"MatMulInteger", "MatMulIntegerToFloat"}
    assert all(row.ok for row in engine.facts.receipt)
    assert len(engine.facts.receipt) == 8


@pytest.mark.parametrize("kind", ["int8_weight_only", "int4", "uint4"])
def test_the_fast_level_is_not_exact_and_says_how_far_off(
    kind: str, quantized: Callable[[str], Graph], tmp_path: Path
) -> None:
    fast = lower(quantized(kind), tmp_path / "fast", accuracy_level=FAST)
    exact = with_accuracy_level(fast, tmp_path / "exact", EXACT)
    deviation = apart(opened(exact).logits(IDS), opened(fast).logits(IDS))
    assert 1e-5 < deviation < backend.LARGEST_DEVIATION
    assert apart(opened(quantized(kind)).logits(IDS), opened(exact).logits(IDS)) < CLOSE
    engine = backend.build(fast, target_named("host"), tmp_path / "engine")
    assert "accuracy_level 4" in engine.facts.notes[0]


def linear_graph(folder: Path, weight_type: Any = np.int8, *, k: int = 256, n: int = 64) -> tuple[Graph, Any]:
    """x -> Q/DQ -> MatMul with a full-range int8 weight, and what it means in float64."""
    rng = np.random.default_rng(0)
    codes = rng.choice(np.array([-127, 126, 127], np.int8), (k, n))
    scale, step = np.float32(4 / 127), rng.uniform(0.5, 1, n).astype(np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "lin.input_scale", "zero"], ["xq"], "lin/Q"),
        helper.make_node("DequantizeLinear", ["xq", "lin.input_scale", "zero"], ["xd"], "lin/DQ"),
        helper.make_node("DequantizeLinear", ["lin.weight_q", "lin.weight_scale"], ["w"], "lin/W", axis=1),
        helper.make_node("MatMul", ["xd", "w"], ["embedding"], "lin/MatMul"),
    ]
    tensors = {"lin.input_scale": scale, "zero": np.int8(0), "lin.weight_q": codes, "lin.weight_scale": step}
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, ["b", k])],
        [info("embedding", TensorProto.FLOAT, ["b", n])],
        initializers,
    )
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), str(folder / "model.onnx")
    )
    made = Graph(folder)
    made.write_facts(
        GraphFacts(
            task="encoder", dialect="portable", dtype="float32", family="bert", opset=23,
            quantized=(LayerFormat(name="lin", format="int8"),), batch_first_shapes={"x": ["b", k]},
        )
    )  # fmt: skip

    def exact(x: np.ndarray) -> np.ndarray:
        rounded = np.clip(np.rint(x / scale), -128, 127).astype(np.float64)
        return rounded @ codes.astype(np.float64) * scale * step

    return made, exact


@pytest.mark.parametrize("rows", [1, 4, 33])
def test_full_range_int8_does_not_saturate(rows: int, tmp_path: Path) -> None:
    """Pairs of 255·127 overflow the int16 sums of vpmaddubsw: signed weights at the runtime's defaults are wrong on AVX2."""
    portable, exact = linear_graph(tmp_path / "p")
    x = np.abs(np.random.default_rng(rows).normal(3, 1, (rows, 256))).astype(np.float32)
    assert apart(exact(x), open_graph(portable, threads=1).infer({"x": x})["embedding"]) < 1e-6
    lowered = lower(portable, tmp_path / "o")
    plain = ort.InferenceSession(str(lowered.onnx), providers=["CPUExecutionProvider"])  # as a user would open it
    assert apart(exact(x), plain.run(None, {"x": x})[0]) < 1e-6


def test_a_weight_with_a_zero_point_is_refused_by_name(tmp_path: Path) -> None:
    portable, _ = linear_graph(tmp_path)
    model = ir.load(portable.onnx)
    node = next(node for node in model.graph if node.name == "lin/W")
    zero = ir_tools.add_constant(model, "three", np.full(64, 3, np.int8))
    replaced = ir.node("DequantizeLinear", [*node.inputs, zero], attributes={"axis": 1}, name="lin/W")
    model.graph.append(replaced)
    ir_tools.take_over(model, node.outputs[0], replaced.outputs[0])
    fused = fuse_unsigned_weights.fuse(model)
    assert (fused.count, fused.reasons) == (0, ("lin/MatMul: its weight has a zero point",))


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_runs_in_integers_and_is_exact(bias: bool, tmp_path: Path) -> None:
    """With padding, stride and full-range weights; against the same graph with the optimizer off, which computes in float."""
    rng = np.random.default_rng(0)
    tensors = {
        "c.input_scale": np.float32(0.03),
        "c.zero": np.int8(0),
        "c.weight_q": rng.choice(np.array([-127, 127, 5], np.int8), (6, 3, 3, 3)),
        "c.weight_scale": rng.uniform(0.01, 0.1, 6).astype(np.float32),
        "c.bias": rng.normal(size=6).astype(np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["pixel_values", "c.input_scale", "c.zero"], ["q"], "c/Q"),
        helper.make_node("DequantizeLinear", ["q", "c.input_scale", "c.zero"], ["d"], "c/DQ"),
        helper.make_node("DequantizeLinear", ["c.weight_q", "c.weight_scale"], ["w"], "c/W", axis=0),
        helper.make_node(
            "Conv", ["d", "w", *["c.bias"] * bias], ["logits"], "c/Conv", pads=[1, 1, 1, 1], strides=[2, 2]
        ),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("pixel_values", TensorProto.FLOAT, ["batch", 3, 9, 9])],
        [info("logits", TensorProto.FLOAT, ["batch", 6, 5, 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    onnx.save(proto, str(tmp_path / "model.onnx"))
    portable = Graph(tmp_path)
    portable.write_facts(
        GraphFacts(
            task="vision", dialect="portable", dtype="float32", family="resnet", opset=23,
            quantized=(LayerFormat(name="c", format="int8"),), batch_first_shapes={"pixel_values": ["batch", 3, 9, 9]},
        )
    )  # fmt: skip
    lowered = lower(portable, tmp_path / "o")
    assert lowered.facts.fusions == {"ConvInteger": 1}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    x = rng.normal(1, 3, (2, 3, 9, 9)).astype(np.float32)
    wanted = ort.InferenceSession(str(portable.onnx), options, providers=["CPUExecutionProvider"]).run(
        None, {"pixel_values": x}
    )
    assert apart(wanted[0], open_graph(lowered, threads=1).infer({"pixel_values": x})["logits"]) < 1e-6
    engine = backend.build(lowered, target_named("host"), tmp_path / "e")
    assert [(row.realised, row.ok) for row in engine.facts.receipt] == [("ConvInteger", True)]


@given(
    st.integers(1, 5),
    st.integers(1, 150),
    st.sampled_from([16, 32, 64, 128]),
    st.sampled_from([4, 8]),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_packing_is_undone_by_the_documented_layout(n: int, k: int, block: int, bits: int, seed: int) -> None:
    half = 1 << (bits - 1)
    codes = np.random.default_rng(seed).integers(-half, half, (k, n)).astype(np.int8)
    packed = pack(codes, bits, block)
    assert packed.shape == (n, -(-k // block), block * bits // 8)
    flat = packed.reshape(n, -1)
    unsigned = flat if bits == 8 else np.stack([flat & 15, flat >> 4], -1).reshape(n, -1)
    np.testing.assert_array_equal(unsigned[:, :k].astype(int) - half, codes.T)
    assert (unsigned[:, k:] == half).all()


@pytest.mark.parametrize(("k", "block"), [(64, 64), (96, 32), (40, 32), (128, 128)])
def test_one_scale_a_column_is_repeated_exactly(k: int, block: int) -> None:
    rng = np.random.default_rng(k)
    codes, scale = rng.integers(-127, 128, (k, 8)).astype(np.int8), rng.uniform(0.1, 1, 8).astype(np.float32)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["m", k]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 23, "com.microsoft": 1}, name="g")
    model = ir.Model(graph, ir_version=11)
    inputs = [
        ir_tools.add_constant(model, name, value) for name, value in (("l.weight_q", codes), ("l.weight_scale", scale))
    ]
    weight = ir_tools.add_node(model, "DequantizeLinear", inputs, "l/W", axis=1)
    y = ir_tools.add_node(model, "MatMul", [x, weight], "l/MatMul")
    y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["m", 8])
    model.graph.outputs.append(y)
    assert fuse_matmul_nbits.fuse(model, EXACT).count == 1
    ir_tools.sweep(model)
    node = model.graph[-1]
    assert node.attributes.get_int("block_size", 0) == block
    values = rng.normal(size=(3, k)).astype(np.float32)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    assert apart(values @ (codes * scale), session.run(None, {"x": values})[0]) < 1e-5


# ---- sessions


def test_a_session_says_what_is_wrong_with_its_input(made: Callable[[str], Made]) -> None:
    session = opened(made("llama").lowered, capacity=16)
    with pytest.raises(RecipeError, match="prefilled"):
        session.decode(np.array([1]))
    with pytest.raises(RecipeError, match=r"lengths \[0, 3\] do not fit"):
        session.prefill(IDS[:2, :4], np.array([0, 3]))
    with pytest.raises(RecipeError, match="17 tokens exceeds this session's capacity of 16"):
        session.prefill(IDS[:, :17])
    with pytest.raises(RecipeError, match="exceeds the graph's context of 64"):
        session.logits(np.ones((1, 65), np.int64))
    session.close()


def test_arrays_belong_to_the_caller_and_logits_leave_the_cache_alone(made: Callable[[str], Made]) -> None:
    session, twin = opened(made("llama").lowered), opened(made("llama").lowered)
    first = session.prefill(IDS[:, :6])
    kept = first.copy()
    session.logits(IDS[:, :9])
    second = session.decode(IDS[:, 6])
    np.testing.assert_array_equal(first, kept)
    twin.prefill(IDS[:, :6])
    np.testing.assert_array_equal(second, twin.decode(IDS[:, 6]))
    session.prefill(IDS[:, :6])  # afresh, over a used buffer
    np.testing.assert_array_equal(second, session.decode(IDS[:, 6]))


def test_a_generic_session_wants_exactly_the_graphs_inputs(tmp_path: Path) -> None:
    graph, _ = linear_graph(tmp_path)
    session = OrtGeneric(graph)
    with pytest.raises(RecipeError, match=r"takes \['x'\], not \['y'\]"):
        session.infer({"y": np.zeros((1, 256), np.float32)})
    with pytest.raises(RecipeError, match="encoder graph without caches"):
        OrtDecoder(graph)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_pytorch_eager_with_its_cache_is_the_checkpoint(family: str, made: Callable[[str], Made]) -> None:
    session = open_eager(open_tiny(made(family).checkpoint))
    assert apart(alone(session, 4), ragged(session, 4)) < CLOSE
    assert apart(ragged(session, 4), ragged(opened(made(family).lowered), 4)) < 1e-3


# ---- the engine


@pytest.fixture(scope="module")
def int8_engine(quantized: Callable[[str], Graph], tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("engine")
    return backend.build(lower(quantized("int8"), root / "o"), target_named("host"), root / "e")


def test_the_receipt_says_which_kernel_every_layer_runs(int8_engine: Any) -> None:
    rows = int8_engine.facts.receipt
    assert [row.layer for row in rows] == [layer.name for layer in int8_engine.facts.graph.quantized]
    assert {(row.asked, row.realised, row.ok) for row in rows} == {("int8", "MatMulIntegerToFloat", True)}
    kernels = int8_engine.facts.kernels[0]
    assert kernels.by_type["GroupQueryAttention"] == 2
    assert kernels.kernels == sum(kernels.by_type.values())


def test_a_layer_that_runs_in_float_is_not_realised(int8_engine: Any, tmp_path: Path) -> None:
    """The same graph with ONNX Runtime's optimizer off: every DequantizeLinear stays, every MatMul is float."""
    graph = Graph(int8_engine.folder)
    options = session_options(graph, threads=1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "p")
    session = OrtDecoder(graph, options=options)
    session.prefill(IDS[:, :4])
    rows = ort_receipt.receipt(graph.facts.quantized, ort_receipt.read_kernels(session.end_profiling()))
    assert {row.ok for row in rows} == {False}
    assert rows[0].realised == "float MatMul after DequantizeLinear"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_every_layer_of_a_vision_model_runs_in_integers(family: str, tmp_path: Path) -> None:
    """The classifier multiplies matrices, with a bias; ViT's first layer is a convolution."""
    model, *_ = load_model(open_tiny(write_checkpoint(tmp_path / "c", family)), tmp_path / "m")
    module = open_model(model)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear):
            replace_layer(module, name, QuantLinear(parts(layer.weight, "int8", layer.bias)))
        elif isinstance(layer, nn.Conv2d):
            replace_layer(module, name, QuantConv2d(parts(layer.weight, "int8", layer.bias), layer))
    folded = save_model(module, read_facts(model), tmp_path / "q", tmp_path / "c")
    portable = export_graph(folded, tmp_path / "g", dtype="float32")
    lowered = lower(portable, tmp_path / "o")
    assert [n.op_type for n in onnx.load(str(lowered.onnx)).graph.node if "classifier" in n.name].count("Sub") == 1
    images = np.random.default_rng(1).standard_normal((3, *portable.facts.batch_first_shapes["pixel_values"][1:]))
    ours, theirs = (open_graph(one).infer({"pixel_values": images})["logits"] for one in (lowered, portable))
    assert apart(ours, theirs) < 0.02  # where a rounding turns over
    rows = backend.build(lowered, target_named("host"), tmp_path / "e").facts.receipt
    assert {row.ok for row in rows} == {True}
    assert {"MatMulIntegerToFloat", "ConvInteger"} <= {row.realised for row in rows}


def test_a_receipt_never_guesses() -> None:
    kernels = [Kernel("layers.1.qkv/MatMul", "MatMulNBits", "CPUExecutionProvider")]
    layers = [LayerFormat(name="layers.1.qkv", format=kind) for kind in ("int4", "int8", "fp8")]
    rows = ort_receipt.receipt(
        [*layers, LayerFormat(name="layers.1", format="int4"), LayerFormat(name="layers.11.qkv", format="int4")],
        kernels,
    )
    assert [row.ok for row in rows] == [True, False, False, True, False]
    assert rows[-1].realised == "not found"


def test_an_unrealised_format_fails_the_build_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = lower(write_tiny(Tiny(dtype="float32", format="int4"), tmp_path / "p"), tmp_path / "o")
    graph.assets.mkdir()
    (graph.assets / "config.json").write_text('{"eos_token_id": 2}')
    monkeypatch.setattr(ort_receipt, "WEIGHT_ONLY", frozenset({"SomethingElse"}))
    monkeypatch.setattr(ort_receipt, "FLOAT", frozenset({"MatMulNBits"}))
    with pytest.raises(VerificationError, match="8 of 8 quantized layers do not run in the format asked for"):
        backend.build(graph, target_named("host"), tmp_path / "e")
    engine = backend.build(graph, target_named("host"), tmp_path / "f", require_realised=False)
    assert not any(row.ok for row in engine.facts.receipt)


def greedy_genai(folder: Path, prompt: list[int], steps: int) -> list[int]:
    model = og.Model(str(folder))
    options = og.GeneratorParams(model)
    options.set_search_options(max_length=len(prompt) + steps, do_sample=False)
    generator = og.Generator(model, options)
    generator.append_tokens(prompt)
    tokens = []
    while not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


def greedy_ours(session: Any, prompt: list[int], steps: int, end: int) -> list[int]:
    tokens = [int(session.prefill(np.array([prompt]))[0].argmax())]
    while len(tokens) < steps and tokens[-1] != end:
        tokens.append(int(session.decode(np.array(tokens[-1:]))[0].argmax()))
    return tokens


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "phi3-partial", "gpt2"])
def test_onnxruntime_genai_says_the_same(family: str, made: Callable[[str], Made], tmp_path: Path) -> None:
    engine = backend.build(made(family).lowered, target_named("host"), tmp_path / "e")
    prompt = IDS[0, :7].tolist()
    ours = greedy_ours(backend.open_engine(engine, threads=1), prompt, 20, end=2)
    assert greedy_genai(engine.folder, prompt, 20) == ours
    assert len(ours) > 3


@pytest.mark.parametrize("original", [4096, 24])
def test_longrope_goes_on_past_its_original_length(original: int, tmp_path: Path) -> None:
    """As `generate` of transformers: the cache is made again where it ends. onnxruntime-genai does so at 4096 only, and we say it."""
    folder = write_checkpoint(
        tmp_path / "c", "phi3", original_max_position_embeddings=original, max_position_embeddings=original + 64
    )
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["original_max_position_embeddings"] = original
    (folder / "config.json").write_text(json.dumps(config))
    model, _, _ = load_model(open_tiny(folder), tmp_path / "m")
    lowered = lower(export_graph(model, tmp_path / "p", dtype="float32"), tmp_path / "o")
    engine = backend.build(lowered, target_named("host"), tmp_path / "e")
    prompt = np.random.default_rng(0).integers(3, 256, original - 6).tolist()
    ours = greedy_ours(backend.open_engine(engine, threads=1), prompt, 20, end=2)
    theirs = AutoModelForCausalLM.from_pretrained(folder).generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False
    )
    assert ours == theirs[0, len(prompt) :].tolist()
    assert f"grows past {original} tokens" in engine.facts.notes[0]
    if original == 4096:
        assert greedy_genai(engine.folder, prompt, 20) == ours
    else:
        assert "makes a longrope cache again at 4096 tokens only, not at 24" in engine.facts.notes[1]


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_onnxruntime_genai_says_the_same_quantized(
    kind: str, quantized: Callable[[str], Graph], tmp_path: Path
) -> None:
    engine = backend.build(lower(quantized(kind), tmp_path / "o"), target_named("host"), tmp_path / "e")
    prompt = IDS[1, :9].tolist()
    ours = greedy_ours(backend.open_engine(engine), prompt, 20, end=2)
    assert greedy_genai(engine.folder, prompt, 20) == ours


def test_onnxruntime_genai_reads_the_tokenizer_beside_the_model(int8_engine: Any, tmp_path: Path) -> None:
    demo = Path(__file__).parents[1] / "examples" / "tiny-llama"
    shutil.copytree(int8_engine.folder, tmp_path / "e")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(demo / name, tmp_path / "e" / name)
    text = "def __init__(self):\n    return 'ü'"
    theirs = og.Tokenizer(og.Model(str(tmp_path / "e"))).encode(text).tolist()
    assert theirs == Tokenizer.from_file(str(demo / "tokenizer.json")).encode(text, add_special_tokens=False).ids


def test_genai_config_states_what_the_graph_takes(made: Callable[[str], Made]) -> None:
    facts = made("llama").lowered.facts
    content = genai_config(facts, ["input_ids", "attention_mask"], {"eos_token_id": [2, 7], "bos_token_id": None}, {})
    decoder = content["model"]["decoder"]
    assert decoder["inputs"].keys() == {"input_ids", "attention_mask", "past_key_names", "past_value_names"}
    assert (content["model"]["eos_token_id"], content["model"]["bos_token_id"]) == ([2, 7], 2)
    assert content["search"]["past_present_share_buffer"] is True
    assert json.loads(json.dumps(content)) == content
    with pytest.raises(RecipeError, match="no `eos_token_id`"):
        genai_config(facts, [], {}, {"eos_token_id": None})


def test_the_engine_folder_is_whole(int8_engine: Any) -> None:
    names = {path.name for path in int8_engine.folder.iterdir()}
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "engine.json", "assets"} <= names
    facts = int8_engine.facts
    assert (facts.backend, facts.dialect, facts.finished, facts.files) == (
        "onnxruntime",
        "onnxruntime",
        True,
        ("model.onnx", "model.onnx.data"),
    )
    assert facts.tool == f"onnxruntime {ort.__version__}"


def test_a_portable_graph_is_no_engine(made: Callable[[str], Made], tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="dialect 'portable' is not for ONNX Runtime"):
        backend.build(made("llama").portable, target_named("host"), tmp_path)
