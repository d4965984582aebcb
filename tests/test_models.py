"""Quantized layers, uneven layers, model folders, refusals: what the families' own tests leave open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openclaw_opt.artifacts import Graph, Model
from openclaw_opt.errors import MachineError, RecipeError, VerificationError
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.emit import TYPES, Writer, describe
from openclaw_opt.models.emit_linear import emit_linear
from openclaw_opt.models.export import export_graph
from openclaw_opt.models.families import spec_from_config
from openclaw_opt.models.linear import QuantConv2d, QuantLinear, QuantParts, replace_layer
from openclaw_opt.models.load import load_model
from openclaw_opt.models.parity import check_parity
from openclaw_opt.models.reference import open_reference
from openclaw_opt.models.rope import rotation, tables
from openclaw_opt.models.spec import DecoderSpec, LayerSpec, ModelFacts, RopeSpec, read_facts
from openclaw_opt.models.store import open_model, save_model
from openclaw_opt.numerics.grid import grid_of
from openclaw_opt.numerics.microscaling import global_scale_of, quantize_nvfp4
from openclaw_opt.numerics.quantization import block_amax, channel_amax, quantize, quantize_blocks, scale_of
from tests.tiny import CONFIGS, open_tiny, write_checkpoint

CLOSE = 1e-4
FORMATS = ("int8", "int8_per_token", "int8_weight_only", "int4", "uint4", "fp8", "fp8-tensor", "nvfp4", "nvfp4-weights")


def parts_of(weight: Tensor, format: str, *, bias: Tensor | None = None, amax: float = 4.0) -> QuantParts:
    """Round-to-nearest parts of `weight`; activations, where quantized, up to `amax`; a pre-scale where int4 or int8."""
    common: dict[str, Any] = {"format": format.partition("-")[0], "bias": bias}
    largest, pre = torch.tensor(amax), torch.linspace(0.8, 1.25, weight.shape[1])
    if format == "int4":
        codes, scale = quantize_blocks(weight / pre, 32)
        return QuantParts(kind="int4", weight_q=codes, weight_scale=scale, block=32, pre_scale=pre, **common)
    if format == "uint4":
        grid = grid_of(weight, "uint4", 32)
        assert grid.zero is not None
        codes, zero = grid.codes(weight).to(torch.uint8), grid.zero.to(torch.uint8)
        return QuantParts(kind="uint4", weight_q=codes, weight_scale=grid.scale, weight_zero=zero, block=32, **common)
    if format.startswith("nvfp4"):
        made = quantize_nvfp4(weight)
        step = global_scale_of(largest) if format == "nvfp4" else None
        return QuantParts(
            kind="nvfp4",
            weight_q=made.packed,
            weight_scale=made.scale,
            weight_global=made.global_scale,
            block=16,
            input_scale=step,
            **common,
        )
    kind = "fp8" if format.startswith("fp8") else "int8"
    weight = weight / pre if format == "int8" else weight
    amaxes = weight.abs().max() if format == "fp8-tensor" else channel_amax(weight)
    return QuantParts(
        kind=kind,  # type: ignore[arg-type]
        weight_q=quantize(weight, amaxes, kind),
        weight_scale=scale_of(amaxes, kind).squeeze(),
        dynamic=format == "int8_per_token",
        input_scale=None if format in ("int8_weight_only", "int8_per_token") else scale_of(largest, kind),
        pre_scale=pre if format == "int8" else None,
        **common,
    )


def quantized(decoder: Decoder, format: str) -> Decoder:
    """Every linear of the layers in `format`, and the head in the first of the formats without activations."""
    for name, layer in list(decoder.named_modules()):
        if isinstance(layer, nn.Linear) and name != "head":
            replace_layer(decoder, name, QuantLinear(parts_of(layer.weight, format, bias=layer.bias)))
    return decoder


def facts_of(decoder: Decoder) -> ModelFacts:
    return ModelFacts(task="decoder", family=decoder.spec.family, dtype="float32", decoder=decoder.spec)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("llama"), "llama-yarn")


def loaded(checkpoint: Path, folder: Path) -> Decoder:
    module = open_model(load_model(open_tiny(checkpoint), folder)[0])
    assert isinstance(module, Decoder)
    return module


def evaluate(graph: Graph, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Logits of a graph in onnx's own reference evaluator, without a past."""
    names = ("input_ids", "attention_mask", "position_ids")
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    for i, kv in enumerate(graph.facts.kv):
        for part in ("key", "value"):
            feed[f"past_key_values.{i}.{part}"] = np.zeros(
                (inputs[0].shape[0], kv.kv_heads, 0, kv.head_dim), np.float32
            )
    return torch.from_numpy(ReferenceEvaluator(onnx.load(str(graph.onnx))).run(["logits"], feed)[0])


@pytest.mark.parametrize("format", FORMATS)
def test_a_quantized_model_is_stored_reopened_and_exported_exactly(format: str, llama: Path, tmp_path: Path) -> None:
    decoder = quantized(loaded(llama, tmp_path / "float"), format)
    model = save_model(decoder, facts_of(decoder), tmp_path / "model", llama)
    again = open_model(model)
    ids = torch.randint(256, (1, 9), generator=torch.Generator().manual_seed(3))
    inputs = ids, torch.ones_like(ids), torch.arange(9)[None]
    with torch.no_grad():
        ours, reopened = decoder(*inputs)[0], again(*inputs)[0]
    assert torch.equal(ours, reopened)
    assert set(read_facts(model).quant) == {
        f"layers.{i}.{part}" for i in range(2) for part in ("qkv", "o", "gate_up", "down")
    }
    graph = export_graph(model, tmp_path / "graph", dtype="float32")
    if format.startswith("nvfp4"):
        with pytest.raises(MachineError, match="cannot run"):
            check_parity(model, graph)
        theirs = evaluate(graph, inputs)
        assert float((ours - theirs).abs().max() / ours.abs().max()) < CLOSE
    else:
        parity = check_parity(model, graph)
        assert parity.typical < CLOSE, parity.cases
        activations = format in ("int8", "int8_per_token", "fp8", "fp8-tensor")
        assert parity.relative < (0.1 if activations else CLOSE), parity.cases
    proto = onnx.load(str(graph.onnx), load_external_data=False)
    kinds = {value.name: value.data_type for value in proto.graph.initializer}
    word = (
        {"int": "INT8", "fp8": "FLOAT8E4M3FN", "nvf": "FLOAT4E2M1"}[format[:3]]
        if "int4" not in format
        else format.upper()
    )
    word = "UINT8" if format == "int8_per_token" else word
    assert kinds["layers.0.qkv.weight_q"] == onnx.TensorProto.DataType.Value(word)
    assert "layers.0.qkv.weight" not in kinds
    assert [row.name for row in graph.facts.quantized] == list(read_facts(model).quant)


def graph_of(layer: QuantLinear, dtype: torch.dtype = torch.float32) -> onnx.ModelProto:
    """x [rows, inputs] → the layer's output, as the exporter writes it."""
    writer = Writer(dtype, 23)
    x = describe("x", TYPES[dtype], ["rows", layer.in_features])
    y = emit_linear(writer, x, "layer", layer, rank=2)
    y.type, y.shape = ir.TensorType(TYPES[dtype]), ir.Shape(["rows", layer.out_features])
    weights = list(writer.initializers.values())
    graph = ir.Graph([x], [y], nodes=writer.nodes, initializers=weights, opset_imports={"": 23}, name="layer")
    proto = ir.to_proto(ir.Model(graph, ir_version=11))
    onnx.checker.check_model(proto, full_check=True)
    return proto


@pytest.mark.parametrize("format", ["int8", "int8_per_token", "int8_weight_only", "int4", "uint4", "fp8", "fp8-tensor"])
def test_a_layer_in_half_precision_equals_onnx_runtime(format: str) -> None:
    random = torch.Generator().manual_seed(0)
    layer = QuantLinear(parts_of(torch.randn(24, 64, generator=random), format, bias=torch.randn(24, generator=random)))
    x = torch.randn(7, 64, generator=random).half()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    proto = graph_of(layer, torch.float16)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    theirs = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    assert float((layer(x).float() - theirs.float()).abs().max() / theirs.abs().max()) < 3e-3


def one_layer(layer: QuantLinear, x: Tensor) -> tuple[Tensor, Tensor]:
    """The layer in torch, and its graph in onnx's reference evaluator."""
    return layer(x), torch.from_numpy(ReferenceEvaluator(graph_of(layer)).run(None, {"x": x.numpy()})[0])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    format=st.sampled_from(FORMATS),
    spread=st.sampled_from([1e-3, 1.0, 50.0]),
    rows=st.integers(1, 3),
    outputs=st.sampled_from([1, 3, 8]),
)
def test_a_layer_does_what_its_nodes_mean(seed: int, format: str, spread: float, rows: int, outputs: int) -> None:
    random = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(outputs, 64, generator=random), torch.randn(rows, 64, generator=random) * spread
    x[0, :16] = 0  # a block of zeros has no scale of its own
    ours, theirs = one_layer(QuantLinear(parts_of(weight, format, bias=torch.randn(outputs, generator=random))), x)
    assert torch.isfinite(ours).all()
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(ours.abs().max()))


@pytest.mark.parametrize("format", FORMATS)
def test_a_layer_stays_near_the_float_one(format: str) -> None:
    random = torch.Generator().manual_seed(0)
    weight, x = torch.randn(32, 128, generator=random), torch.randn(16, 128, generator=random).clamp(-3, 3)
    wanted = x @ weight.T
    error = float((QuantLinear(parts_of(weight, format))(x) - wanted).norm() / wanted.norm())
    limit = {
        "int8": 0.02,
        "int8_per_token": 0.02,
        "int8_weight_only": 0.01,
        "int4": 0.12,
        "uint4": 0.12,
        "fp8": 0.05,
        "fp8-tensor": 0.05,
    }.get(format, 0.2)
    assert 0 < error < limit


def test_a_scale_that_half_precision_lacks_is_refused() -> None:
    layer = QuantLinear(parts_of(torch.randn(8, 32) * 1e-6, "int8_weight_only"))
    graph_of(layer, torch.bfloat16)
    with pytest.raises(VerificationError, match=r"layer.weight_scale: a scale between .* has no float16 value"):
        graph_of(layer, torch.float16)


def test_casting_a_model_leaves_quantized_numbers_alone() -> None:
    layer = QuantLinear(parts_of(torch.randn(8, 32), "fp8"))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    nn.Sequential(layer).half()
    assert all(value.dtype == before[name].dtype for name, value in layer.state_dict().items())


def test_a_block_must_divide_the_inputs() -> None:
    with pytest.raises(ValueError, match="not a multiple of block 32"):
        QuantLinear(
            QuantParts(
                "int4", "int4", torch.zeros(4, 48, dtype=torch.int8), block_amax(torch.ones(4, 32), 32), block=32
            )
        )


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_layers_of_different_sizes(family: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", family)
    spec = spec_from_config(json.loads((tmp_path / "c" / "config.json").read_text()))
    assert isinstance(spec, DecoderSpec)
    first, second = spec.layers[:2]
    sizes = (
        LayerSpec(q_heads=2, kv_heads=1, ffn=40, window=first.window, rope=first.rope),
        LayerSpec(q_heads=6, kv_heads=3, ffn=72, window=second.window, rope=second.rope),
    )
    torch.manual_seed(0)
    decoder = Decoder(spec.model_copy(update={"layers": sizes})).eval().requires_grad_(False)
    for value in decoder.parameters():
        value.add_(torch.randn_like(value) * 0.1)
    model = save_model(decoder, facts_of(decoder), tmp_path / "m", tmp_path / "c")
    assert read_facts(model).decoder == decoder.spec
    graph = export_graph(model, tmp_path / "g", dtype="float32")
    assert [(kv.q_heads, kv.kv_heads) for kv in graph.facts.kv] == [(2, 1), (6, 3)]
    parity = check_parity(model, graph)
    assert parity.relative < CLOSE, parity.cases


def test_a_tied_head_is_stored_and_exported_once(tmp_path: Path) -> None:
    checkpoint = open_tiny(write_checkpoint(tmp_path / "c", "gemma2"))
    model, _, _ = load_model(checkpoint, tmp_path / "m")
    assert "head.weight" not in load_file(tmp_path / "m" / "model.safetensors")
    decoder = open_model(model)
    assert isinstance(decoder, Decoder)
    assert decoder.head.weight is decoder.embed.weight
    graph = export_graph(model, tmp_path / "g", dtype="float32")
    shapes = [tuple(v.dims) for v in onnx.load(str(graph.onnx), load_external_data=False).graph.initializer]
    assert [sorted(shape) for shape in shapes].count([64, 256]) == 1


def test_a_quantized_head_leaves_the_embedding_as_it_was(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", "gemma2")
    decoder = loaded(tmp_path / "c", tmp_path / "f")
    before = decoder.embed.weight.clone()
    replace_layer(decoder, "head", QuantLinear(parts_of(decoder.head.weight, "int4")))
    model = save_model(decoder, facts_of(decoder), tmp_path / "m", tmp_path / "c")
    again = open_model(model)
    assert isinstance(again, Decoder)
    assert torch.equal(again.embed.weight, before)
    assert isinstance(again.head, QuantLinear)
    parity = check_parity(model, export_graph(model, tmp_path / "g", dtype="float32"))
    assert parity.relative < CLOSE, parity.cases


def test_two_exports_are_the_same_bytes(llama: Path, tmp_path: Path) -> None:
    model, _, _ = load_model(open_tiny(llama), tmp_path / "m")
    a, b = (export_graph(model, tmp_path / name, dtype="float16") for name in "ab")
    for file in ("model.onnx", "model.onnx.data", "graph.json"):
        assert (a.folder / file).read_bytes() == (b.folder / file).read_bytes()


def test_the_context_bounds_the_rotary_tables(llama: Path, tmp_path: Path) -> None:
    model, _, _ = load_model(open_tiny(llama), tmp_path / "m")
    graph = export_graph(model, tmp_path / "g", dtype="float32", context=20)
    assert graph.facts.context == 20
    tensors = {v.name: tuple(v.dims) for v in onnx.load(str(graph.onnx), load_external_data=False).graph.initializer}
    assert tensors["rope.default.cos"] == (20, 8)
    assert check_parity(model, graph).relative < CLOSE


def test_names_are_stable(llama: Path, tmp_path: Path) -> None:
    model, _, _ = load_model(open_tiny(llama), tmp_path / "m")
    proto = onnx.load(str(export_graph(model, tmp_path / "g", dtype="float32").onnx), load_external_data=False)
    nodes = {node.name for node in proto.graph.node}
    assert {"layers.0.qkv/MatMul", "layers.1.down/MatMul", "layers.0.attention/Attention", "head/MatMul"} <= nodes
    assert len(nodes) == len(proto.graph.node)
    assert [v.name for v in proto.graph.input] == [
        "input_ids", "attention_mask", "position_ids",
        *(f"past_key_values.{i}.{part}" for i in range(2) for part in ("key", "value")),
    ]  # fmt: skip
    assert [v.name for v in proto.graph.output] == [
        "logits", *(f"present.{i}.{part}" for i in range(2) for part in ("key", "value"))
    ]  # fmt: skip
    assert [d.dim_param or d.dim_value for d in proto.graph.input[3].type.tensor_type.shape.dim] == [
        "batch",
        2,
        "past",
        16,
    ]


@pytest.mark.parametrize("past", [10, 40])
def test_longrope_tables_hold_both_ranges(past: int) -> None:
    rope = RopeSpec(type="longrope", dim=8, original=16, short=(1.0,) * 4, long=(4.0,) * 4, amplitude=1.25)
    cos, sin = tables(rope, 64)
    at = past - 1 + (64 if past > 16 else 0)
    positions = torch.arange(past)[None]
    assert torch.equal(rotation(rope, positions)[0][0, -1], cos[at])
    assert torch.equal(rotation(rope, positions)[1][0, -1], sin[at])


def changed(checkpoint: Path, folder: Path, **keys: Any) -> Path:
    """A copy of the checkpoint's files with another config.json."""
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("family", "keys", "words"),
    [
        ("llama", {"architectures": ["LlamaForCausaLM"]}, ["'LlamaForCausaLM'", "did you mean 'LlamaForCausalLM'?"]),
        ("llama", {"architectures": ["MixtralForCausalLM"]}, ["'MixtralForCausalLM'", "did you mean 'MistralForCausalLM'"]),
        ("llama", {"architectures": []}, ["names no architecture"]),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, ["rope type 'dynamic'"]),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, ["lacks 'low_freq_factor'"]),
        ("llama", {"hidden_act": "xielu"}, ["activation 'xielu'"]),
        ("llama", {"num_key_value_heads": 3}, ["num_attention_heads = 4 is not a multiple of num_key_value_heads = 3"]),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, ["already quantized (gptq)"]),
        ("qwen2", {"layer_types": ["chunked_attention"] * 2}, ["layer type 'chunked_attention'"]),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx = True"]),
        ("phi3", {"rope_parameters": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}}, ["8 short and long"]),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(family: str, keys: dict[str, Any], words: list[str]) -> None:
    config = {**CONFIGS[family]().to_dict(), "architectures": [f"{family.title()}ForCausalLM"]}
    config["architectures"] = ["GPT2LMHeadModel"] if family == "gpt2" else config["architectures"]
    with pytest.raises(RecipeError) as error:
        spec_from_config(config | keys)
    for word in words:
        assert word in str(error.value)


def test_older_configs_are_read(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    rope = config.pop("rope_parameters")
    older = config | {"rope_theta": rope.pop("rope_theta"), "rope_scaling": {"type": rope.pop("rope_type"), **rope}}
    assert spec_from_config(older) == spec_from_config(json.loads((llama / "config.json").read_text()))
    gemma = CONFIGS["gemma3"]().to_dict() | {"architectures": ["Gemma3ForCausalLM"]}
    old = {key: value for key, value in gemma.items() if key not in ("rope_parameters", "layer_types")}
    assert spec_from_config(old | {"sliding_window_pattern": 2}) == spec_from_config(gemma)


def edited(checkpoint: Path, folder: Path, edit: Any) -> Path:
    changed(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), ["'model.layers.1.mlp.up_proj.weight' is missing"]),
        (lambda t: t.update({"model.layers.7.odd": torch.zeros(1)}), ["'model.layers.7.odd' has no place in a llama"]),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(63)}),
            ["'model.norm.weight' has shape [63], wanted [64]"],
        ),
    ],
)
def test_tensors_that_do_not_match_are_named(edit: Any, words: list[str], llama: Path, tmp_path: Path) -> None:
    folder = edited(llama, tmp_path / "c", edit)
    with pytest.raises(RecipeError) as error:
        load_model(open_tiny(folder), tmp_path / "m")
    for word in words:
        assert word in str(error.value)


def test_known_buffers_and_bare_models_are_accepted(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", "gpt2")

    def bare(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)

    whole = loaded(folder, tmp_path / "a")
    again = loaded(edited(folder, tmp_path / "d", bare), tmp_path / "b")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json"])
def test_missing_assets_are_named(file: str, llama: Path, tmp_path: Path) -> None:
    folder = changed(llama, tmp_path / "c")
    checkpoint = open_tiny(folder)
    (folder / file).unlink()
    with pytest.raises(RecipeError, match=f"{file} is missing"):
        load_model(checkpoint, tmp_path / "m")


def test_a_damaged_model_folder_is_refused(llama: Path, tmp_path: Path) -> None:
    model, _, _ = load_model(open_tiny(llama), tmp_path / "m")
    tensors = load_file(model.folder / "model.safetensors")
    tensors.pop("layers.0.o.weight")
    save_file(tensors, model.folder / "model.safetensors")
    with pytest.raises(RecipeError, match=r"damaged: missing \['layers.0.o.weight'\]"):
        open_model(Model(model.folder))


HF_LAYERS = {
    "bert": ("model.encoder.layer.0.attention.self.query", "model.encoder.layer.1.output.dense"),
    "vit": ("model.vit.layers.0.attention.q_proj", "model.classifier"),
    "resnet": ("model.resnet.embedder.embedder.convolution", "model.classifier.1"),
}


@pytest.mark.parametrize("family", ["bert", "vit", "resnet"])
def test_encoders_and_vision_models(family: str, tmp_path: Path) -> None:
    """Two layers of each in int8, the rest in float; so one export serves both."""
    checkpoint = open_tiny(write_checkpoint(tmp_path / "c", family))
    model, _, _ = load_model(checkpoint, tmp_path / "m")
    module = open_model(model)
    reference = open_reference(checkpoint)
    inputs = _inputs(family)
    ours = module(*inputs)
    ours = ours[1] if isinstance(ours, tuple) else ours
    assert torch.allclose(ours, reference(*inputs), rtol=1e-4, atol=1e-5)
    for name in HF_LAYERS[family]:
        layer = module.get_submodule(name)
        if isinstance(layer, nn.Conv2d):
            replace_layer(module, name, QuantConv2d(parts_of(layer.weight, "fp8-tensor", bias=layer.bias), layer))
        else:
            replace_layer(module, name, QuantLinear(parts_of(layer.weight, "int8", bias=layer.bias)))
    model = save_model(module, read_facts(model), tmp_path / "q", tmp_path / "c")
    graph = export_graph(model, tmp_path / "g", dtype="float32")
    parity = check_parity(model, graph)
    assert parity.typical < CLOSE, parity.cases
    assert parity.relative < 0.1, parity.cases
    proto = onnx.load(str(graph.onnx), load_external_data=False)
    assert {f"{name}.weight_q" for name in HF_LAYERS[family]} <= {value.name for value in proto.graph.initializer}
    assert {value.name for value in proto.graph.input} == set(graph.facts.batch_first_shapes)
    assert {node.domain for node in proto.graph.node} == {""}
    assert {entry.domain for entry in proto.opset_import} == {""}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_quantized_patch_embedding_runs_and_is_exported(dtype: Any, tmp_path: Path) -> None:
    """ViT asks this very layer for its weight's dtype, in PyTorch and while it is traced."""
    name = "model.vit.embeddings.patch_embeddings.projection"
    checkpoint = open_tiny(write_checkpoint(tmp_path / "c", "vit"))
    model, _, _ = load_model(checkpoint, tmp_path / "m")
    module = open_model(model)
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Conv2d)
    replace_layer(module, name, QuantConv2d(parts_of(layer.weight, "int8_weight_only", bias=layer.bias), layer))
    assert not any(key.endswith("projection.weight") for key in module.state_dict() if "patch" in key)
    model = save_model(module, read_facts(model), tmp_path / "q", tmp_path / "c")
    half = open_model(model).half()
    assert half.get_submodule(name).weight.dtype == torch.float16
    graph = export_graph(model, tmp_path / "g", dtype=dtype)
    parity = check_parity(model, graph)
    assert parity.relative < {"float32": CLOSE, "float16": 2e-2}[dtype], parity.cases
    proto = onnx.load(str(graph.onnx), load_external_data=False)
    assert f"{name}.weight_q" in {value.name for value in proto.graph.initializer}


def _inputs(family: str) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    if family == "bert":
        ids = torch.randint(3, 256, (2, 9), generator=random)
        return ids, torch.ones_like(ids), torch.zeros_like(ids)
    return (torch.randn(2, *((3, 16, 16) if family == "vit" else (1, 224, 224)), generator=random),)


def test_a_sentence_embedding_leaves_padding_out_and_has_length_one(tmp_path: Path) -> None:
    reference = open_reference(open_tiny(write_checkpoint(tmp_path / "c", "bert")))
    ids = torch.randint(3, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    both, short = reference(ids, mask, torch.zeros_like(ids)), reference(*(x[1:, :4] for x in (ids, mask, ids * 0)))
    assert torch.allclose(both.norm(dim=1), torch.ones(2))
    assert torch.allclose(both[1], short[0], atol=1e-6)


@pytest.mark.parametrize(
    ("modules", "pooling", "wanted"),
    [
        (["Transformer", "Pooling"], {"pooling_mode_cls_token": True}, "cls"),
        (["Transformer", "Pooling", "Normalize"], {"pooling_mode": "max"}, "max"),
        (["Transformer", "Pooling", "Dense"], {"pooling_mode": "max"}, RecipeError),
        (["Transformer", "Pooling"], {"pooling_mode_lasttoken": True}, RecipeError),
    ],
)
def test_sentence_transformers_pooling_is_followed(
    modules: list[str], pooling: dict[str, Any], wanted: Any, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "c", "bert")
    rows = [{"type": f"sentence_transformers.models.{kind}", "path": f"1_{kind}"} for kind in modules]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if wanted is RecipeError:
        with pytest.raises(RecipeError, match="not supported"):
            load_model(open_tiny(folder), tmp_path / "m")
        return
    spec = read_facts(load_model(open_tiny(folder), tmp_path / "m")[0]).hf
    assert spec is not None
    assert (spec.pooling, spec.normalize) == (wanted, "Normalize" in modules)


@pytest.mark.parametrize(
    ("config", "preprocessor", "wanted"),
    [
        ({}, None, (1, 224, 224)),
        ({"image_size": 8}, {"size": 32}, (1, 8, 8)),
        ({"image_size": [8, 6]}, None, (1, 8, 6)),
        ({}, {"size": {"height": 24, "width": 32}}, (1, 24, 32)),
        ({}, {"size": {"shortest_edge": 40}, "crop_size": 28, "do_center_crop": True}, (1, 28, 28)),
    ],
)
def test_the_image_size_is_found_where_it_is_stated(
    config: dict[str, Any], preprocessor: dict[str, Any] | None, wanted: tuple[int, int, int], tmp_path: Path
) -> None:
    folder = changed(write_checkpoint(tmp_path / "c", "resnet"), tmp_path / "d", **config)
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    spec = read_facts(load_model(open_tiny(folder), tmp_path / "m")[0]).hf
    assert spec is not None
    assert spec.image == wanted


def test_a_switch_that_is_stated_off_is_accepted() -> None:
    for family, word in (("gemma2", "Gemma2ForCausalLM"), ("gemma3", "Gemma3ForCausalLM")):
        config = CONFIGS[family]().to_dict() | {"architectures": [word]}
        for off in (None, False):
            spec_from_config(config | {"use_bidirectional_attention": off})
        with pytest.raises(RecipeError, match="use_bidirectional_attention = True is not supported"):
            spec_from_config(config | {"use_bidirectional_attention": True})
