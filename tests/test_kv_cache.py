"""Low-bit key/value caches: the grid, every family through model, graph and kernels, what engines hold, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openclaw_opt.artifacts import Graph, GraphFacts, KvShape, Model
from openclaw_opt.backends import gguf, llama_cpp, onnxruntime, ort_receipt
from openclaw_opt.backends.genai_sessions import GenaiDecoder
from openclaw_opt.backends.ort_receipt import Kernel
from openclaw_opt.backends.ort_sessions import OrtDecoder
from openclaw_opt.errors import RecipeError, VerificationError
from openclaw_opt.formats import CACHES
from openclaw_opt.graph import to_onnxruntime
from openclaw_opt.inspection import inspect
from openclaw_opt.inspection.show import lines
from openclaw_opt.metrics.roofline import cache_bytes
from openclaw_opt.models.calibrate import decoder_calibration
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.export import export_graph
from openclaw_opt.models.spec import read_facts
from openclaw_opt.models.store import open_model, save_model
from openclaw_opt.numerics.cache import as_cached, codes, scales_of
from openclaw_opt.numerics.quantization import sqnr_db
from openclaw_opt.passes import Done, View
from openclaw_opt.passes.build import Build
from openclaw_opt.passes.prune import Prune
from openclaw_opt.passes.quantize import Quantize
from openclaw_opt.plan import check_recipe
from openclaw_opt.recipe import load_recipe
from openclaw_opt.records import LayerRecord
from openclaw_opt.targets import TARGETS, host
from openclaw_opt.verify import compare, difference, make_probe, outputs, typical_difference
from tests.passes_alone import CPU, TEXT, Alone
from tests.test_gguf import needs_llama
from tests.tiny import DECODERS

CLOSE = 1e-4
"""Of a typical row: a cache is written, read and multiplied in float32, and a rounding that turns over moves one channel of one token."""
KINDS = [(family, "int8", True) for family in DECODERS] + [
    (family, "int4", True) for family in ("llama", "gemma2", "phi3", "gpt2")
]
KINDS += [("llama", "int8", False), ("mistral", "int4", False)]


def texts(sequences: int = 8, length: int = 48, seed: int = 0) -> Any:
    ids = np.random.default_rng(seed).integers(3, 256, (sequences, length))
    return decoder_calibration(torch.from_numpy(ids), 4)


class Chain:
    """A family, its cache quantized, exported and lowered."""

    def __init__(self, folder: Path, family: str, options: dict[str, Any], **changes: Any) -> None:
        self.alone = Alone(folder, family, **changes)
        self.done: Done[Model] = self.alone(Quantize(**options), None, texts())
        self.graph = export_graph(self.done.artifact, folder / "graph", dtype="float32")
        self.lowered = to_onnxruntime.lower(self.graph, folder / "lowered")

    @property
    def module(self) -> Decoder:
        module = open_model(self.done.artifact)
        assert isinstance(module, Decoder)
        return module


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Chain]:
    made: dict[str, Chain] = {}

    def chain(family: str = "llama", **options: Any) -> Chain:
        key = f"{family} {options}"
        if key not in made:
            made[key] = Chain(tmp_path_factory.mktemp("chain"), family, options)
        return made[key]

    return chain


# The grid.

NUMBERS = st.floats(-1e4, 1e4, width=32)


@given(st.lists(NUMBERS, min_size=8, max_size=8), st.sampled_from(sorted(CACHES)), st.floats(0.0078125, 2.0, width=32))
@settings(deadline=None)
def test_the_grid_is_that_of_its_codes(numbers: list[float], name: str, share: float) -> None:
    x, row = torch.tensor(numbers).view(1, 2, 2, 2), CACHES[name]
    scale = scales_of(x.abs().amax((0, 2)).unsqueeze(1) * share, row)
    found, back = codes(x, scale, row), as_cached(x, scale, row)
    assert bool((scale > 0).all())
    assert bool((found == found.round()).all())
    assert row.lowest <= float(found.min())
    assert float(found.max()) <= row.top
    inside = (x / scale).abs() <= row.top
    assert bool(((back - x).abs() <= scale * 0.5001)[inside].all())
    assert torch.equal(codes(back, scale, row), found)


def test_a_channel_that_never_moved_takes_its_heads_range_and_a_dead_head_divides_by_one() -> None:
    amax = torch.tensor([[[0.0, 2.54]], [[0.0, 0.0]]])
    scale = scales_of(amax, CACHES["int8"])
    assert torch.allclose(scale, torch.tensor([[[0.02, 0.02]], [[1.0, 1.0]]]))


# Model, graph, kernel.


@pytest.mark.parametrize(("family", "name", "per_channel"), KINDS)
def test_model_graph_and_kernel_hold_the_same_cache(family: str, name: str, per_channel: bool, tmp_path: Path) -> None:
    """Prefill of unequal lengths, then steps through the cache, past a window of 8 tokens, against the model without a cache."""
    options = {"kv_cache": name, **({} if per_channel else {"kv_per_channel": False})}
    made = Chain(tmp_path, family, options)
    probe = make_probe(read_facts(made.done.artifact).spec, seed=0)
    model, graph, kernel = (outputs(one, probe) for one in (made.done.artifact, made.graph, made.lowered))
    for after in (graph, kernel):
        assert typical_difference(model, after) < CLOSE
        assert difference(model, after) < 2e-2, "one rounding that turned over"
    assert difference(model, outputs(made.alone.model, probe)) > 1e-3, "the cache is not rounded at all"
    node = next(node for node in onnx.load(str(made.lowered.onnx)).graph.node if node.op_type == "GroupQueryAttention")
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    assert attributes["kv_cache_bit_width"] == CACHES[name].bits
    assert attributes["k_quant_type"] == (b"PER_CHANNEL" if per_channel else b"PER_TENSOR")


@pytest.mark.parametrize("name", sorted(CACHES))
def test_the_buffer_holds_the_codes_of_the_float_models_keys(name: str, chains: Callable[..., Chain]) -> None:
    made, ids = chains(kv_cache=name), np.arange(20)[None] + 7
    with closing(OrtDecoder(made.lowered, capacity=32)) as session:
        session.prefill(ids)
        held = np.array(session._cache._values[0].numpy()[:, :, :20])
    float_model = open_model(made.alone.model)
    batch = decoder_calibration(torch.from_numpy(ids), 1).batches[0]
    with torch.no_grad():
        keys = float_model(*batch)[1][0]
    wanted = codes(keys, made.module.layers[0].get_buffer("k_scale"), CACHES[name]).numpy()
    if name == "int4":
        held = np.stack([held & 0xF, held >> 4], -1).reshape(*held.shape[:-1], -1).astype(np.int8) - 8
    assert np.array_equal(held, wanted)


def test_a_wrong_scale_is_no_rounding(chains: Callable[..., Chain], tmp_path: Path) -> None:
    """Another grid in one layer of two, twice as coarse: the smallest mistake of a scale."""
    made = chains(kv_cache="int8")
    module = made.module
    module.layers[1].get_buffer("v_scale").mul_(2)
    spoilt = save_model(module, read_facts(made.done.artifact), tmp_path / "spoilt", made.done.artifact.assets)
    wrong = to_onnxruntime.lower(export_graph(spoilt, tmp_path / "g", dtype="float32"), tmp_path / "l")
    from openclaw_opt.passes.fuse import Fuse

    with pytest.raises(VerificationError, match="pass `fuse` is exact, but outputs differ by"):
        compare(Fuse(), made.graph, wrong, make_probe(read_facts(spoilt).spec, seed=0))


def test_a_graph_that_divides_by_another_scale_than_it_multiplies_with_is_not_lowered(
    chains: Callable[..., Chain], tmp_path: Path
) -> None:
    made = chains(kv_cache="int8")
    proto = onnx.load(str(made.graph.onnx))
    node = next(node for node in proto.graph.node if node.op_type == "Div" and "cache.key" in node.name)
    node.input[1] = "layers.0.v_scale"
    odd = Graph(tmp_path / "odd")
    odd.folder.mkdir()
    onnx.save(proto, str(odd.onnx))
    odd.write_facts(made.graph.facts)
    with pytest.raises(VerificationError, match="is divided by another scale than it is read with"):
        to_onnxruntime.lower(odd, tmp_path / "lowered")


# What the pass says, and does to the weights beside.


@pytest.mark.slow
def test_weights_and_cache_in_one_pass(chains: Callable[..., Chain]) -> None:
    made = chains(format="int4", algorithm="rtn", kv_cache="int8")
    facts, details = read_facts(made.done.artifact), made.done.details
    assert len(facts.quant) == 8
    assert facts.decoder is not None
    assert facts.decoder.cache is not None
    assert made.done.changed == "; ".join(facts.notes[-2:])
    assert made.done.changed.endswith(
        "key/value cache of 2 layers to int8, a scale a head and channel (largest values)"
    )
    rows = [LayerRecord.model_validate(row) for row in json.loads(json.dumps(details["layers"]))]
    assert [row.name for row in rows][-4:] == ["layers.0.key", "layers.0.value", "layers.1.key", "layers.1.value"]
    assert all(row.output_sqnr_db is not None and row.output_sqnr_db > 40 for row in rows[-4:])
    assert details["cache"]["tokens"] == 8 * 48
    assert not (made.done.artifact.folder / "weights").exists()


def test_the_error_is_that_of_the_keys(chains: Callable[..., Chain]) -> None:
    made = chains(kv_cache="int4")
    float_model = open_model(made.alone.model)
    with torch.no_grad():
        keys = torch.cat([float_model(*batch)[1][0] for batch in texts().batches])
    held = as_cached(keys, made.module.layers[0].get_buffer("k_scale"), CACHES["int4"])
    assert made.done.details["layers"][0]["output_sqnr_db"] == pytest.approx(sqnr_db(keys, held), abs=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"kv_calibration": "percentile", "percentile": 99.0},
        {"kv_calibration": "mse", "kv_cache": "int4"},
        {"kv_calibration": "entropy"},
    ],
)
def test_histograms_narrow_every_channel_of_a_layer_by_one_factor(
    options: dict[str, Any], chains: Callable[..., Chain]
) -> None:
    widest = chains(kv_cache=options.get("kv_cache", "int8")).module.layers[0].get_buffer("k_scale")
    found = chains(**{"kv_cache": "int8", **options}).module.layers[0].get_buffer("k_scale")
    factor = (found / widest).flatten()
    assert torch.allclose(factor, factor[0].expand_as(factor))
    assert 0.05 < float(factor[0]) <= 1
    assert float(factor[0]) < 1 or "entropy" in options.values(), "so few values may leave nothing to cut"


def test_channels_that_calibration_never_moves_are_counted(tmp_path: Path) -> None:
    alone = Alone(tmp_path, "llama")
    module = open_model(alone.model)
    assert isinstance(module, Decoder)
    values = (4 + 2) * 16
    module.layers[1].qkv.weight[values : values + 3] = 0
    still = save_model(module, read_facts(alone.model), tmp_path / "still", alone.model.assets)
    done = alone(Quantize(kv_cache="int8"), still, texts())
    notes = {row["name"]: row["note"] for row in done.details["layers"]}
    assert notes["layers.1.value"].endswith("; 3 of 32 channels never moved in calibration")
    assert "never" not in notes["layers.1.key"]


def test_a_broken_key_is_named(tmp_path: Path) -> None:
    alone = Alone(tmp_path, "llama")
    module = open_model(alone.model)
    assert isinstance(module, Decoder)
    module.layers[1].qkv.weight[0 + 4 * 16 + 5, 3] = float("inf")
    broken = save_model(module, read_facts(alone.model), tmp_path / "broken", alone.model.assets)
    with pytest.raises(RecipeError, match=r"layers\.1: a key is NaN or infinite on the calibration data"):
        alone(Quantize(kv_cache="int8"), broken, texts())


# Engines.


@pytest.mark.parametrize("name", sorted(CACHES))
def test_the_engine_states_its_cache_and_genai_runs_it(name: str, chains: Callable[..., Chain], tmp_path: Path) -> None:
    made = chains(kv_cache=name)
    engine = onnxruntime.build(made.lowered, CPU_HOST, tmp_path / "engine")
    held = {"int8": "int8", "int4": "uint8"}[name]
    rows = [(row.layer, row.asked, row.realised, row.ok) for row in engine.facts.receipt]
    assert rows == [(f"layers.{i}.cache", name, f"{name} in GroupQueryAttention", True) for i in range(2)]
    assert f"reads float, {held}, int32" in engine.facts.receipt[0].why
    each = 2 * 2 * 2 * 16 * CACHES[name].bits // 8  # layers, keys and values, heads, channels
    assert engine.facts.graph.token_bytes == each
    assert cache_bytes(engine.facts.graph, 10) == 10 * each
    assert f"cache: {name}, {each:,} bytes a token, {each * 64 / 2**20:.1f} MiB for 64 tokens" in lines(
        inspect(engine.folder)
    )
    prompt = np.random.default_rng(1).integers(3, 256, (1, 12))
    with closing(onnxruntime.open_engine(engine)) as ours, closing(GenaiDecoder(engine.folder, 64)) as theirs:
        assert greedy(ours, prompt) == greedy(theirs, prompt)


CPU_HOST = host() if not host().is_gpu else replace(CPU)


def greedy(session: Any, prompt: np.ndarray[Any, Any], steps: int = 30) -> list[int]:
    logits, found = session.prefill(prompt), []
    for _ in range(steps):
        token = logits.argmax(-1)
        found.append(int(token[0]))
        logits = session.decode(token)
    return found


def test_an_attention_that_reads_floats_is_not_realised() -> None:
    kernel = Kernel("layers.0.attention/Attention", "GroupQueryAttention", "CPU", ("float", "float", "float", "int32"))
    shape = KvShape(q_heads=4, kv_heads=2, head_dim=16, cache="int8")
    (wrong,) = ort_receipt.cache_receipt((shape,), (kernel,))
    assert (wrong.realised, wrong.ok) == ("float+int32", False)
    (absent,) = ort_receipt.cache_receipt((shape,), ())
    assert (absent.realised, absent.ok) == ("not found", False)
    assert ort_receipt.cache_receipt((shape.model_copy(update={"cache": None}),), (kernel,)) == ()


def test_onnxruntime_has_no_float8_cache_on_a_cpu() -> None:
    """Why `kv_cache: fp8` is refused; the day this fails it can be offered."""
    sizes = ["batch", 2, "past", 16]
    caches = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT8E4M3FN, sizes) for name in ("pk", "pv")]
    flat = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", "new", 32]) for name in "qkv"]
    counts = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.INT32, s) for n, s in (("last", ["batch"]), ("all", []))
    ]
    scales = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("ks", "vs")]
    node = onnx.helper.make_node(
        "GroupQueryAttention", [*"qkv", "pk", "pv", "last", "all", *[""] * 5, "ks", "vs"], ["y", "nk", "nv"],
        domain="com.microsoft", num_heads=2, kv_num_heads=2, kv_cache_bit_width=8, k_quant_type="PER_TENSOR", v_quant_type="PER_TENSOR",
    )  # fmt: skip
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", "new", 32])
    grown = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT8E4M3FN, ["batch", 2, "all", 16])
        for n in ("nk", "nv")
    ]
    graph = onnx.helper.make_graph([node], "attention", [*flat, *caches, *counts, *scales], [y, *grown])
    opsets = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=11)
    with pytest.raises(Exception, match="Could not find an implementation for GroupQueryAttention"):
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.slow
@needs_llama
@pytest.mark.parametrize(("name", "word", "each"), [("int8", "q8_0", 34), ("int4", "q4_0", 18)])
def test_llama_cpp_holds_the_cache_and_its_float_twin_proves_it(
    name: str, word: str, each: int, tmp_path: Path
) -> None:
    graph, todo = gguf_graph(tmp_path, name)
    assert {kv.cache for kv in graph.facts.kv} == {None}, "the runtime rounds, the graph does not"
    done = Build(backend="gguf").run(graph, todo)
    assert done.proof is not None
    verification = compare(
        Build(backend="gguf"), graph, done.artifact, make_probe(gguf.decoder_spec(graph), 0), done.proof
    )
    assert verification.value is not None
    assert verification.value < 1e-4
    facts = done.artifact.facts
    assert [(row.layer, row.asked, row.realised, row.ok) for row in facts.receipt] == [("cache", name, word, True)]
    assert facts.graph.token_bytes == 2 * 2 * 2 * each, "layers, keys and values, heads of one block of 32"
    assert f"--cache-type-k {word} --cache-type-v {word} --flash-attn on" in "; ".join(facts.notes)


@needs_llama
def test_a_cache_of_another_type_than_asked_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, todo = gguf_graph(tmp_path, "int8")
    monkeypatch.setitem(llama_cpp.LOW_BIT, "int8", ("q8_0", llama_cpp.LOW_BIT["int4"][1]))
    with pytest.raises(VerificationError, match="holds its cache in q4_0, not in int8"):
        Build(backend="gguf").run(graph, todo)


def gguf_graph(base: Path, name: str, backend: str = "gguf") -> tuple[Graph, Any]:
    """A tiny Qwen 3, whose heads of 32 channels llama.cpp can round."""
    from openclaw_opt.passes.export import Export
    from openclaw_opt.passes.fuse import Fuse
    from openclaw_opt.passes.load import Load
    from tests import tiny
    from tests.lowered import work

    checkpoint: Any = tiny.open_tiny(tiny.write_checkpoint(base / "checkpoint", "qwen3", std=0.05))
    artifact = checkpoint
    for i, part in enumerate((Load(), Quantize.model_validate({"kv_cache": name}), Export(), Fuse())):
        artifact = part.run(artifact, work(base / str(i), checkpoint, backend)).artifact
    return artifact, work(base / "build", checkpoint, backend)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "word", "each"), [("int8", "u8", 32 + 8), ("int4", "u4", 16 + 8)])
def test_openvino_holds_the_cache_and_its_float_twin_proves_it(name: str, word: str, each: int, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="pip install 'openclaw-opt[openvino]'")
    graph, todo = gguf_graph(tmp_path, name, "openvino")
    build = Build(backend="openvino")
    done = build.run(graph, todo)
    assert done.proof is not None
    verification = compare(build, graph, done.artifact, make_probe(gguf.decoder_spec(graph), 0), done.proof)
    assert verification.value is not None
    assert verification.value < 1e-5
    facts = done.artifact.facts
    assert [(row.layer, row.asked, row.realised, row.ok) for row in facts.receipt] == [
        (f"layers.{i}.cache", name, f"{name} a token and head", True) for i in range(2)
    ]
    assert facts.graph.token_bytes == 2 * 2 * 2 * each, "layers, keys and values, heads of 32 with scale and zero point"
    assert f"the file asks OpenVINO for a cache in {word} (KV_CACHE_PRECISION)" in "; ".join(facts.notes)


def test_a_cache_that_openvino_does_not_round_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the property for a cache that its attention then holds in float: what lies in the state decides."""
    pytest.importorskip("openvino", reason="pip install 'openclaw-opt[openvino]'")
    from openclaw_opt.backends import openvino

    graph, todo = gguf_graph(tmp_path, "int8", "openvino")
    monkeypatch.setitem(openvino.CACHES, "int8", "f16")
    with pytest.raises(VerificationError, match=r"layers\.0\.cache: asked int8, got float"):
        Build(backend="openvino").run(graph, todo)


# What is refused, before any work.


def complaints(options: dict[str, Any], **changes: Any) -> list[tuple[str, str, str]]:
    from openclaw_opt.models.families import spec_from_config
    from tests.tiny import CONFIGS

    spec = spec_from_config(
        CONFIGS[changes.pop("family", "llama")]().to_dict()
        | {"architectures": [changes.pop("arch", "LlamaForCausalLM")]}
    )
    view = {"spec": spec, "target": CPU, "backend": "onnxruntime", "calibration": TEXT, "earlier": (), **changes}
    return [(one.what, one.option, one.fix) for one in Quantize(**options).check(View(**view))]


L4 = {"target": TARGETS["l4"], "backend": "tensorrt"}
INT8: dict[str, Any] = {"kv_cache": "int8"}
QWEN3 = {"family": "qwen3", "arch": "Qwen3ForCausalLM"}
GEMMA2 = {"family": "gemma2", "arch": "Gemma2ForCausalLM"}
AUTO = {**INT8, "format": "auto", "candidates": ["int4", "int8"], "within": {"perplexity.recovery": ">= 0.9"}}
NAME = "name a format, or leave it out"
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str, str, str]] = [
    ({}, {}, "it names neither a format nor a kv_cache", "", "format: int8, or kv_cache: int8"),
    (INT8, L4, "tensorrt does not realise an int8 cache on NVIDIA L4: its in-place cache update takes", "kv_cache", "kv_cache: float"),
    (INT8, {**L4, "backend": "onnxruntime"}, "an int8 cache is not offered on NVIDIA L4: ONNX Runtime's CUDA", "kv_cache", "kv_cache: float"),
    (INT8, {"backend": "fastest"}, "int8 cache: the runtimes round", "kv_cache", "backend: onnxruntime, gguf or openvino"),
    (INT8, {"backend": "gguf"}, "llama.cpp rounds a cache in blocks of 32", "kv_cache", "kv_cache: float, or backend: onnxruntime"),
    (INT8, {"backend": "openvino", **GEMMA2}, "OpenVINO has no kernel for attention", "kv_cache", "kv_cache: float, or backend: onnxruntime"),
    ({**INT8, "kv_calibration": "mse"}, {"backend": "openvino"}, "kv_calibration has no effect on openvino: OpenVINO", "kv_calibration", "leave it out"),
    ({**INT8, "kv_calibration": "mse"}, {"backend": "gguf", **QWEN3}, "kv_calibration has no effect on gguf", "kv_calibration", "leave it out"),
    (INT8, {"calibration": None}, "an int8 cache needs calibration data", "kv_cache", "add `calibration` to `data`"),
    ({"kv_cache": "int4", "kv_calibration": "entropy"}, {}, "int4 has no entropy", "kv_calibration", "legal: max, percentile, mse"),
    ({**INT8, "percentile": 99.9}, {}, "percentile has no effect without it", "percentile", "kv_calibration: percentile"),
    ({**INT8, "block": 32}, {}, "block has no effect without a format", "block", NAME),
    ({**INT8, "keep": ("head",)}, {}, "keep has no effect without a format", "keep", NAME),
    (INT8, {"earlier": (Quantize(kv_cache="int8"),)}, "an earlier pass has quantized the cache", "kv_cache", "leave it out of one"),
    ({"format": "int8", "kv_per_channel": False}, {}, "kv_per_channel has no effect on a float", "kv_per_channel", "kv_cache: int8, or leave it out"),
    (INT8, {"family": "bert", "arch": "BertModel"}, "a model without a decoder has no key/value cache", "kv_cache", "kv_cache: float"),
    (AUTO, {}, "the choice among formats would be measured without", "kv_cache", "a pass before this one: `- quantize: {kv_cache: int8}`"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "changes", "what", "option", "fix"), REFUSED)
def test_each_refusal(options: dict[str, Any], changes: dict[str, Any], what: str, option: str, fix: str) -> None:
    found = complaints(options, **changes)
    assert [(one[1], one[2]) for one in found if one[0].startswith(what)] == [(option, fix)], found


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"kv_cache": "int8"}, {}),
        ({"kv_cache": "int4", "kv_calibration": "mse"}, {}),
        ({"kv_cache": "int8", "kv_calibration": "percentile", "percentile": 99.9, "kv_per_channel": False}, {}),
        ({"format": "int4", "algorithm": "rtn", "kv_cache": "int8"}, {}),
        (
            {"kv_cache": "int8"},
            {"backend": "gguf", "family": "qwen3", "arch": "Qwen3ForCausalLM", "calibration": None},
        ),
        ({"kv_cache": "int8"}, {"earlier": (Prune(ffn=0.4),)}),
    ],
)
def test_what_is_legal(options: dict[str, Any], changes: dict[str, Any]) -> None:
    assert complaints(options, **changes) == []


def test_the_recipe_is_refused_with_its_line(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe(("format: int8, algorithm: max", "kv_cache: int8"), ("- build", "- build: {backend: fastest}"))
    with pytest.raises(RecipeError) as caught:
        check_recipe(load_recipe(path))
    assert f"{path}:8: quantize: int8 cache: the runtimes round a cache differently" in str(caught.value)
    with pytest.raises(RecipeError, match=r"(?s)kv_cache: fp8 is not realised.*fix: kv_cache: int8"):
        load_recipe(write_recipe(("format: int8, algorithm: max", "kv_cache: fp8"), name="fp8"))


def test_what_nothing_realises_hides_no_other_mistake(write_recipe: Callable[..., Path]) -> None:
    """The place is the option's, of a file and of `--set`; the other options of the pass are read too."""
    options = "format: mxfp8, kv_cache: fp8, damping: 7, sweps: 1"
    path = write_recipe(("format: int8, algorithm: max", options))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert [mistake.what.split(" is ")[0].split("; ")[0] for mistake in caught.value.mistakes] == [
        "format: mxfp8", "kv_cache: fp8", "damping: input should be less than or equal to 1", "unknown key 'sweps'",
    ]  # fmt: skip
    with pytest.raises(RecipeError, match=r"^--set passes\.quantize\.kv_cache=fp8: kv_cache: fp8 is not realised"):
        load_recipe(write_recipe(name="set"), settings=["passes.quantize.kv_cache=fp8"])


def test_weights_after_the_cache(tmp_path: Path) -> None:
    """A decoder that streams with scales of a cache beside its weights: they are carried over, and its codes are computed with."""
    alone = Alone(tmp_path, "llama")
    first = alone(Quantize(kv_cache="int8"), None, texts())
    done = alone(Quantize(format="int4", algorithm="gptq"), first.artifact, texts())
    before, after = (open_model(one.artifact) for one in (first, done))
    assert isinstance(before, Decoder)
    assert isinstance(after, Decoder)
    assert after.spec.cache == before.spec.cache
    for old, new in zip(before.layers, after.layers, strict=True):
        for part in ("k_scale", "v_scale"):
            assert torch.equal(old.get_buffer(part), new.get_buffer(part))


def test_bytes_of_a_token_are_those_of_the_caches() -> None:
    shape = KvShape(q_heads=8, kv_heads=2, head_dim=64)
    kinds = [(None, None), ("int8", None), ("int4", None), ("int8", 32), ("int4", 32)]
    found = [shape.model_copy(update={"cache": cache, "block": block}).token_bytes("float16") for cache, block in kinds]
    assert found == [512, 256, 128, 272, 144], "llama.cpp's Q8_0 is 34 bytes for 32 numbers, its Q4_0 18"
    mixed = GraphFacts(task="decoder", dialect="portable", dtype="float32", family="x", opset=23,
                       kv=(shape, shape.model_copy(update={"cache": "int8"})))  # fmt: skip
    assert mixed.cache_format == "float32 and int8"
    assert mixed.token_bytes == 1024 + 256
