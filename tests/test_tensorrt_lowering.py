"""portable → TensorRT is exact: the lowered graph on ONNX Runtime equals the portable one, in prefill, step by step and padded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from openclaw_opt.artifacts import Graph, GraphFacts, KvShape, LayerFormat
from openclaw_opt.backends.ort_sessions import OrtDecoder
from openclaw_opt.errors import RecipeError, VerificationError
from openclaw_opt.graph.to_tensorrt import lower
from openclaw_opt.graph.trt_legality import advise, check
from openclaw_opt.targets import target_named
from tests.tiny_decoder import Tiny, write_tiny

TOLERANCE = {"float32": 2e-6, "float16": 2e-3}
"""Of the largest logit. Half precision: the explicit soft-cap is computed in float32, the portable one in half."""

SHAPES = (
    Tiny(dtype="float32"),
    Tiny(dtype="float32", windows=(None, 5)),
    Tiny(dtype="float32", windows=(4, None), softcap=3.0),
    Tiny(dtype="float32", softcap=2.0, q_heads=2, kv_heads=2),
    Tiny(dtype="float32", format="int8", windows=(3, 3)),
    Tiny(dtype="float32", format="fp8"),
    Tiny(dtype="float16", windows=(None, 5)),
    Tiny(dtype="float16", softcap=3.0, q_heads=6, kv_heads=2),
    Tiny(dtype="float16", format="int8"),
)


def lowered(tiny: Tiny, folder: Path) -> tuple[Graph, Graph]:
    source = write_tiny(tiny, folder / "portable")
    return source, lower(source, folder / "lowered")


@pytest.mark.parametrize("tiny", SHAPES, ids=lambda tiny: f"{tiny.dtype}-{tiny.format}-{tiny.windows}-{tiny.softcap}")
def test_every_step_of_a_padded_batch_equals_each_sequence_alone_in_the_portable_graph(
    tiny: Tiny, tmp_path: Path
) -> None:
    source, result = lowered(tiny, tmp_path)
    rng = np.random.default_rng(1)
    ids, lengths, steps = rng.integers(0, tiny.vocab, (3, 9)), np.array([9, 4, 6]), rng.integers(0, tiny.vocab, (3, 8))
    with OrtDecoder(source) as portable, OrtDecoder(result) as ours:
        alone = [portable.logits(np.concatenate([ids[b, : lengths[b]], steps[b]])[None])[0] for b in range(3)]
        bound = TOLERANCE[tiny.dtype] * max(float(np.abs(one).max()) for one in alone)
        got = ours.prefill(ids, lengths)
        for step in range(9):
            wanted = np.stack([alone[b][lengths[b] - 1 + step] for b in range(3)])
            np.testing.assert_allclose(got, wanted, rtol=0, atol=bound)
            if step < 8:
                got = ours.decode(steps[:, step])
        np.testing.assert_allclose(ours.logits(ids[:1]), portable.logits(ids[:1]), rtol=0, atol=bound)


def test_a_window_changes_the_output(tmp_path: Path) -> None:
    """Guards the test above: were windows ignored by both graphs, it would still pass."""
    ids = np.arange(12)[None]
    _, full = lowered(Tiny(dtype="float32"), tmp_path / "full")
    _, near = lowered(Tiny(dtype="float32", windows=(3, 3)), tmp_path / "near")
    with OrtDecoder(full) as one, OrtDecoder(near) as other:
        far, close = one.logits(ids), other.logits(ids)
    np.testing.assert_allclose(far[0, :3], close[0, :3], atol=1e-5)
    assert np.abs(far[0, -1] - close[0, -1]).max() > 1e-3


def test_the_contract_of_the_lowered_graph(tmp_path: Path) -> None:
    _, result = lowered(Tiny(windows=(None, 5)), tmp_path)
    model = onnx.load(str(result.onnx), load_external_data=False)
    kinds = [node.op_type for node in model.graph.node]
    caches = [f"past_key_values.{i}.{part}" for i in range(2) for part in ("key", "value")]
    assert [value.name for value in model.graph.input] == ["input_ids", "position_ids", *caches]
    assert kinds.count("TensorScatter") == 4
    assert "Concat" not in kinds
    assert [dim.dim_value for dim in model.graph.input[2].type.tensor_type.shape.dim][1:] == [2, 32, 16]
    assert model.opset_import[0].version == 24
    assert (result.facts.dialect, result.facts.context) == ("tensorrt", 32)
    assert result.facts.fusions == {"static_cache": 4, "mask_from_positions": 2}


@pytest.mark.parametrize(("dtype", "head_dim", "marked"), [("float16", 16, 0), ("float32", 16, 2), ("float16", 12, 2)])
def test_attention_without_a_fused_kernel_is_marked_in_metadata(
    dtype: str, head_dim: int, marked: int, tmp_path: Path
) -> None:
    _, result = lowered(Tiny(dtype=dtype, head_dim=head_dim), tmp_path)
    model = onnx.load(str(result.onnx), load_external_data=False)
    nodes = [node for node in model.graph.node if node.op_type == "Attention"]
    assert sum(any(entry.key == "trt_decomposable" for entry in node.metadata_props) for node in nodes) == marked
    assert not any(attribute.name == "TRT_decomposable" for node in nodes for attribute in node.attribute)
    assert bool(advise(result.facts)) == bool(marked)


def test_a_shorter_cache_is_right_and_a_longer_one_is_refused(tmp_path: Path) -> None:
    source = write_tiny(Tiny(), tmp_path / "portable")
    assert lower(source, tmp_path / "short", context=16).facts.context == 16
    with pytest.raises(RecipeError, match="context 64 is longer"):
        lower(source, tmp_path / "long", context=64)


def edited(folder: Path, edit: Callable[[onnx.GraphProto], None]) -> Graph:
    """The tiny portable graph after `edit`."""
    graph = write_tiny(Tiny(), folder)
    model = onnx.load(str(graph.onnx), load_external_data=False)
    edit(model.graph)
    onnx.save(model, str(graph.onnx))
    return graph


def named(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    return next(node for node in graph.node if node.name == name)


def contrib(graph: onnx.GraphProto) -> None:
    named(graph, "layers.0.sigmoid").domain = "com.microsoft"


def causal_and_masked(graph: onnx.GraphProto) -> None:
    named(graph, "layers.1.attention").attribute.append(onnx.helper.make_attribute("is_causal", 1))


def quantized_attention(graph: onnx.GraphProto) -> None:
    node = named(graph, "layers.0.attention")
    zero = onnx.numpy_helper.from_array(np.array(0, np.int8), "zero_point")
    scale = onnx.numpy_helper.from_array(np.array(0.1, np.float16), "scale")
    graph.initializer.extend([zero, scale])
    pair = [
        onnx.helper.make_node("QuantizeLinear", [node.input[0], "scale", "zero_point"], ["low"], name="q"),
        onnx.helper.make_node("DequantizeLinear", ["low", "scale", "zero_point"], ["wide"], name="dq"),
    ]
    node.input[0] = "wide"
    at = list(graph.node).index(node)
    for offset, new in enumerate(pair):
        graph.node.insert(at + offset, new)


def mask_read_elsewhere(graph: onnx.GraphProto) -> None:
    graph.node.append(onnx.helper.make_node("ReduceSum", ["attention_mask"], ["tokens"], name="count"))
    graph.output.append(onnx.helper.make_tensor_value_info("tokens", onnx.TensorProto.INT64, None))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (contrib, r"layers\.0\.sigmoid \(Sigmoid\): operators of com\.microsoft need plugins"),
        (causal_and_masked, r"layers\.1\.attention: the attention of a decoder needs an explicit mask"),
        (quantized_attention, r"layers\.0\.attention \(Attention\).*leave it in half precision"),
        (mask_read_elsewhere, r"count: attention_mask is still read by ReduceSum"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_tensorrt_would_refuse_or_get_wrong_is_refused_by_name(
    edit: Callable[[onnx.GraphProto], None], says: str, tmp_path: Path
) -> None:
    with pytest.raises(VerificationError, match=says):
        lower(edited(tmp_path / "edited", edit), tmp_path / "lowered")


def facts(dtype: str = "float16", quantized: str = "", block: int | None = None, head_dim: int = 64) -> GraphFacts:
    layers = (LayerFormat(name="layers.0.qkv", format=quantized, block=block),) if quantized else ()
    kv = (KvShape(q_heads=4, kv_heads=2, head_dim=head_dim),)
    common = {"task": "decoder", "dialect": "tensorrt", "family": "llama", "opset": 24, "kv": kv, "quantized": layers}
    return GraphFacts.model_validate({**common, "dtype": dtype})


@pytest.mark.parametrize(
    ("stated", "target", "says"),
    [
        (facts(), "rtx4090", ""),
        (facts(quantized="fp8"), "l40s", ""),
        (facts(quantized="fp8"), "rtx3060", "fp8: GeForce RTX 3060 12 GB has no tensor cores for it"),
        (facts(quantized="nvfp4", block=16), "rtx4090", "nvfp4: GeForce RTX 4090 has no tensor cores"),
        (facts(quantized="nvfp4", block=16), "rtx5090", ""),
        (facts(quantized="int4", block=48), "rtx4090", "blocks of 48"),
    ],
)
def test_legality_is_known_from_facts_alone(stated: GraphFacts, target: str, says: str) -> None:
    found = check(stated, target_named(target))
    assert found == [] if not says else says in found[0]
