"""The twin of an NVFP4 graph on ONNX Runtime is what the operators mean: torch, onnx's reference evaluator, every code and tie."""

from __future__ import annotations

import gc
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from openclaw_opt.artifacts import Graph, GraphFacts, LayerFormat, Model
from openclaw_opt.backends.ort_sessions import OrtDecoder, open_runtime, session_options
from openclaw_opt.errors import MachineError
from openclaw_opt.graph import to_tensorrt
from openclaw_opt.graph.emulate_fp4 import dequantized, emulate
from openclaw_opt.models.emit import TYPES, Writer, describe, save
from openclaw_opt.models.emit_linear import emit_linear
from openclaw_opt.models.export import export_graph
from openclaw_opt.models.linear import QuantLinear
from openclaw_opt.models.store import open_model, save_model
from tests.test_models import facts_of, loaded, parts_of, quantized
from tests.tiny import write_checkpoint

DTYPES = {"float32": torch.float32, "float16": torch.float16}
LOW = ml_dtypes.float4_e2m1fn
VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def facts(dtype: str, **more: Any) -> GraphFacts:
    layer = LayerFormat(name="layer", format="nvfp4", block=16)
    base = {"task": "encoder", "dialect": "portable", "dtype": dtype, "family": "t", "opset": 23, "quantized": (layer,)}
    return GraphFacts.model_validate({**base, **more})


def layer_graph(layer: QuantLinear, dtype: str, folder: Path) -> Graph:
    """The input as the layer sees it, its weight's product, as the exporter writes them."""
    writer, kind = Writer(DTYPES[dtype], 23), TYPES[DTYPES[dtype]]
    x = describe("x", kind, ["batch", "rows", layer.in_features])
    y = emit_linear(writer, x, "layer", layer)
    y.type, y.shape = ir.TensorType(kind), ir.Shape(["batch", "rows", layer.out_features])
    seen = next(node for node in writer.nodes if node.op_type == "MatMul").inputs[0]
    assert seen is not None
    seen.type, seen.shape = ir.TensorType(kind), ir.Shape(["batch", "rows", layer.in_features])
    graph = ir.Graph(
        [x],
        [seen, y] if layer.input_scale is not None else [y],
        nodes=writer.nodes,
        initializers=list(writer.initializers.values()),
        opset_imports={"": 23},
        name="layer",
    )
    folder.mkdir()
    save(ir.Model(graph, ir_version=11), folder)
    result = Graph(folder)
    result.write_facts(facts(dtype))
    return result


def bits(array: np.ndarray) -> bytes:
    return (array + 0.0).tobytes()  # -0 is 0


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("spread", [1e-4, 1.0, 30.0])
def test_a_layer_is_that_of_torch_and_of_the_reference_evaluator_bit_for_bit(
    dtype: str, spread: float, tmp_path: Path
) -> None:
    random = torch.Generator().manual_seed(1)
    layer = QuantLinear(parts_of(torch.randn(24, 64, generator=random), "nvfp4"))
    x = (torch.randn(3, 200, 64, generator=random) * spread).to(DTYPES[dtype])
    x[0, 0, :16] = 0
    graph = layer_graph(layer, dtype, tmp_path / "g")
    seen, y = open_runtime(graph).run(None, {"x": x.numpy()})
    assert bits(seen) == bits(layer.quantized_input(x).numpy())
    reference = ReferenceEvaluator(onnx.load(str(graph.onnx))).run(None, {"x": x.numpy()})
    assert bits(seen) == bits(reference[0])
    assert len(np.unique(seen)) > 8
    wanted = layer(x).float().numpy()
    np.testing.assert_allclose(y.astype(np.float32), wanted, rtol=0, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_weight_is_that_of_torch_bit_for_bit(dtype: str, tmp_path: Path) -> None:
    layer = QuantLinear(parts_of(torch.randn(24, 64, generator=torch.Generator().manual_seed(2)), "nvfp4-weights"))
    twin = emulate(layer_graph(layer, dtype, tmp_path / "g"), tmp_path / "twin")
    held = {value.name: numpy_helper.to_array(value) for value in onnx.load(str(twin.onnx)).graph.initializer}
    (name,) = (name for name in held if name.startswith("layer.weight/"))
    assert bits(held[name]) == bits(layer.weight_values(DTYPES[dtype]).numpy())
    assert not any(str(array.dtype).startswith("float4") for array in held.values())


def pair_graph(folder: Path, dtype: str, shape: list[int], scale: np.ndarray, **attributes: Any) -> Graph:
    """x → QuantizeLinear → DequantizeLinear, with constant scales."""
    kind = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[dtype]
    blocks = {key: attributes[key] for key in ("axis", "block_size") if key in attributes}
    low = {"output_dtype": TensorProto.FLOAT4E2M1, **attributes}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"], name="quantize", **low),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"], name="dequantize", **blocks),
    ]
    values = [helper.make_tensor_value_info(name, kind, shape) for name in "xy"]
    graph = helper.make_graph(nodes, "pair", values[:1], values[1:], [numpy_helper.from_array(scale, "s")])
    folder.mkdir()
    result = Graph(folder)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), str(result.onnx))
    result.write_facts(facts(dtype))
    return result


def test_ties_go_to_the_even_mantissa_and_beyond_six_saturates(tmp_path: Path) -> None:
    middles = [(a + b) / 2 for a, b in itertools.pairwise(VALUES)]
    near = [np.nextafter(np.float32(m), np.float32(way)) for m in middles for way in (0, 9)]
    x = np.array([*VALUES, *middles, *near, 6.1, 7.0, 8.0, 1e30, np.inf], np.float32)
    x = np.concatenate([x, -x, np.zeros(-2 * len(x) % 16, np.float32)])[None]
    graph = pair_graph(
        tmp_path / "g", "float32", list(x.shape), np.ones((1, x.size // 16), np.float32), axis=-1, block_size=16
    )
    (y,) = open_runtime(graph).run(None, {"x": x})
    assert bits(y) == bits(x.astype(LOW).astype(np.float32))
    by_hand = {0.25: 0, 0.75: 1, 1.25: 1, 1.75: 2, 2.5: 2, 3.5: 4, 5.0: 4, 1e30: 6}
    for value, rounded in by_hand.items():
        assert y[x == np.float32(value)].tolist() == [rounded]


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 9999),
    axis=st.sampled_from([-1, -2, 0, 1, 2]),
    dtype=st.sampled_from(["float32", "float16"]),
    wide=st.booleans(),
)
def test_every_axis_and_precision_is_what_the_reference_evaluator_does(
    seed: int, axis: int, dtype: str, wide: bool
) -> None:
    rng, shape, kind = np.random.default_rng(seed), [6, 4, 8], np.dtype(dtype)
    scales = list(shape)
    scales[axis] //= 2
    scale = (rng.random(scales) + 0.1).astype(kind)
    # Quotients at the midpoints and one unit beside them, where the type of the division decides.
    spread = np.repeat(scale, 2, axis).astype(np.float64)
    x = (rng.choice([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 9.0], shape) * spread * rng.choice([-1, 1], shape)).astype(
        kind
    )
    x = np.nextafter(x, (x + rng.choice([-1, 0, 1], shape)).astype(kind))
    more = {"precision": TensorProto.FLOAT} if wide else {}
    with tempfile.TemporaryDirectory() as scratch:
        graph = pair_graph(Path(scratch) / "g", dtype, shape, scale, axis=axis, block_size=2, **more)
        (y,) = open_runtime(graph).run(None, {"x": x})
        (wanted,) = ReferenceEvaluator(onnx.load(str(graph.onnx))).run(None, {"x": x})
    assert bits(y) == bits(wanted)


def test_blocks_of_a_constant_may_lie_along_any_axis() -> None:
    codes = np.array([[0.5, 6], [3, -4], [1, 1.5], [-2, 0]], LOW)
    got = dequantized(codes, np.array([[2, 1], [0.5, 10]], np.float16), 0, 2)
    assert got.dtype == np.float16
    assert got.tolist() == [[1, 6], [6, -4], [0.5, 15], [-1, 0]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A llama of two layers, every linear but the head in NVFP4."""
    folder = tmp_path_factory.mktemp("llama")
    checkpoint = write_checkpoint(folder / "checkpoint", "llama")
    decoder = quantized(loaded(checkpoint, folder / "float"), "nvfp4")
    return save_model(decoder, facts_of(decoder), folder / "model", checkpoint)


def both_dialects(model: Model, dtype: Any, folder: Path) -> tuple[Graph, Graph]:
    portable = export_graph(model, folder / "portable", dtype=dtype)
    return portable, to_tensorrt.lower(portable, folder / "lowered")


Step = dict[str, np.ndarray]


def steps(graph: Graph) -> Iterator[tuple[Step, list[str]]]:
    """Feeds of a prefill and three decode steps, and the names of their caches in the order of the facts; send the caches."""
    ids, at = np.random.default_rng(5).integers(0, 256, (2, 10)), 0
    portable, layers = graph.facts.dialect == "portable", range(len(graph.facts.kv))
    names = [f"{i}.{part}" for i in layers for part in ("key", "value")]
    slots = 0 if portable else graph.facts.context or 0
    caches = [np.zeros((2, graph.facts.kv[0].kv_heads, slots, 16), graph.facts.dtype) for _ in names]
    for end in (7, 8, 9, 10):
        feed = {"input_ids": ids[:, at:end], "position_ids": np.arange(at, end)[None].repeat(2, 0)}
        mask = {"attention_mask": np.ones((2, end), np.int64)} if portable else {}
        pasts = {f"past_key_values.{name}": cache for name, cache in zip(names, caches, strict=True)}
        caches = yield feed | mask | pasts, [f"present.{name}" for name in names]  # type: ignore[misc]
        at = end


def played(graph: Graph, *run: Callable[[Step, list[str]], list[np.ndarray]]) -> Iterator[list[list[np.ndarray]]]:
    """What each of `run` gives for every step, first its caches; all see the caches of the last one."""
    source = steps(graph)
    feed, presents = next(source)
    while True:
        found = [one(feed, presents) for one in run]
        yield found
        try:
            feed, presents = source.send(found[-1][: len(presents)])  # type: ignore[attr-defined]
        except StopIteration:
            return


def test_logits_are_the_reference_evaluators_in_both_dialects(model: Model, tmp_path: Path) -> None:
    for graph in both_dialects(model, "float32", tmp_path):
        ours, theirs = open_runtime(graph), ReferenceEvaluator(onnx.load(str(graph.onnx)))
        runs = [lambda feed, names, one=one: one.run([*names, "logits"], feed) for one in (ours, theirs)]
        gaps = [np.abs(got[-1] - want[-1]).max() / np.abs(want[-1]).max() for got, want in played(graph, *runs)]
        assert len(gaps) == 4
        assert max(gaps) < 1e-5, (graph.facts.dialect, gaps)


def test_a_session_decodes_as_torch_does_in_both_dialects(model: Model, tmp_path: Path) -> None:
    ids = np.random.default_rng(3).integers(0, 256, (2, 12))
    with torch.no_grad():
        inputs = torch.from_numpy(ids), torch.ones(2, 12, dtype=torch.int64), torch.arange(12).expand(2, -1)
        wanted = open_model(model)(*inputs)[0].numpy()
    for graph in both_dialects(model, "float32", tmp_path):
        with OrtDecoder(graph) as session:
            got = [session.prefill(ids[:, :8], np.full(2, 8)), *(session.decode(ids[:, at]) for at in range(8, 12))]
        gaps = np.abs(np.stack(got, 1) - wanted[:, 7:]).max(-1) / np.abs(wanted).max()
        assert np.median(gaps) < 1e-5, (graph.facts.dialect, gaps)


def exposed(graph: Graph, folder: Path) -> tuple[ort.InferenceSession, dict[str, tuple[str, str]]]:
    """The twin with every activation before and after its FP4 Q/DQ among the outputs; their names by layer."""
    nodes, proto = onnx.load(str(graph.onnx)).graph.node, onnx.load(str(emulate(graph, folder).onnx))
    readers = {node.input[0]: node for node in nodes if node.op_type == "DequantizeLinear"}
    pairs = {
        node.name.partition(".input/")[0]: (node.input[0], readers[node.output[0]].output[0])
        for node in nodes
        if node.op_type == "QuantizeLinear"
    }
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(graph.facts.dtype))
    proto.graph.output.extend(
        helper.make_tensor_value_info(name, kind, None) for name in sorted({n for pair in pairs.values() for n in pair})
    )
    return ort.InferenceSession(proto.SerializeToString(), session_options(graph)), pairs


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_activation_of_a_decoder_is_rounded_as_torch_rounds_it_bit_for_bit(
    dtype: str, model: Model, tmp_path: Path
) -> None:
    """Logits in half precision differ by what turned-over roundings cost, which says nothing; each Q/DQ on its own does."""
    module = open_model(model)
    for graph in both_dialects(model, dtype, tmp_path):
        session, pairs = exposed(graph, tmp_path / f"twin-{graph.facts.dialect}")
        assert len(pairs) == 8
        flat = [name for pair in pairs.values() for name in pair]
        count = 0
        for (found,) in played(graph, lambda feed, names, s=session, more=flat: s.run([*names, *more], feed)):
            seen = dict(zip(flat, found[-len(flat) :], strict=True))
            for layer, (before, after) in pairs.items():
                wanted = module.get_submodule(layer).quantized_input(torch.from_numpy(seen[before])).numpy()
                assert bits(seen[after]) == bits(wanted), (graph.facts.dialect, layer)
                count += 1
        assert count == 4 * 8


def test_the_twin_goes_with_its_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    graph = pair_graph(tmp_path / "g", "float32", [1, 16], np.ones((1, 1), np.float32), axis=-1, block_size=16)
    session = open_runtime(graph)
    assert len(list(tmp_path.glob("openclaw-opt-fp4-*/model.onnx"))) == 1
    del session
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


def test_a_form_that_is_not_known_is_named(tmp_path: Path) -> None:
    graph = pair_graph(tmp_path / "g", "float32", [1, 16], np.array(1, np.float32))
    with pytest.raises(MachineError, match=r"dequantize \(DequantizeLinear\).*not one of blocks"):
        open_runtime(graph)
