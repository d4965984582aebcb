"""Sparsify: zeros where they were asked, kept by every pass after it, and what each engine does with them is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from openclaw_opt import zeros
from openclaw_opt.artifacts import GraphFacts, Model
from openclaw_opt.backends import trt_sparsity
from openclaw_opt.cli import app
from openclaw_opt.data import Source
from openclaw_opt.errors import RecipeError, VerificationError
from openclaw_opt.models import converting, sparsifying
from openclaw_opt.models.calibrate import Calibration
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.export import export_graph
from openclaw_opt.models.families import spec_from_config
from openclaw_opt.models.linear import QuantLayer
from openclaw_opt.models.spec import read_facts
from openclaw_opt.models.store import open_model
from openclaw_opt.numerics.sparsity import is_two_of_four, zeros_share
from openclaw_opt.passes import View
from openclaw_opt.passes.prune import Prune
from openclaw_opt.passes.quantize import Quantize
from openclaw_opt.passes.rotate import Rotate
from openclaw_opt.passes.sparsify import Sparsify
from openclaw_opt.records import LayerRecord
from openclaw_opt.targets import CANDIDATES, TARGETS
from tests.passes_alone import CPU, TEXT, Alone, silent
from tests.test_quantize import PAIRS, tokens
from tests.tiny import DECODERS, open_tiny, write_checkpoint

ROOT = Path(__file__).parent.parent
IMAGES = type("Pictures", (Source,), {"kind": "images"}).model_construct(split="a", samples=1, length=1)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def sparse(llama: Alone) -> Model:
    """The tiny Llama, 2:4 by SparseGPT."""
    return llama(Sparsify(pattern="2:4"), batches=tokens()).artifact


def weights(model: Model) -> dict[str, torch.Tensor]:
    module = open_model(model)
    return {name: layer.weight for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)}


# What comes out.


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_each_pattern_and_method(llama: Alone, pattern: Any, method: Any) -> None:
    done = llama(Sparsify(pattern=pattern, method=method), batches=tokens())
    facts = read_facts(done.artifact)
    before, after = weights(llama.model), weights(done.artifact)
    names = [name for name in before if name != "head"]
    assert list(facts.sparse) == names
    assert torch.equal(after["head"], before["head"])
    for name in names:
        assert facts.sparse[name].pattern == pattern
        assert facts.sparse[name].share == zeros_share(after[name]) == pytest.approx(0.5, abs=0.005)
        assert is_two_of_four(after[name]) == (pattern == "2:4")
    assert done.count == sum(int((after[name] == 0).sum()) for name in names)
    title = "2:4" if pattern == "2:4" else "unstructured 0.5"
    assert done.changed == f"8 of 9 linear layers to {title} ({method}): {done.count:,} more zeros"
    assert facts.notes[-1] == done.changed
    rows = [LayerRecord.model_validate(row) for row in json.loads(json.dumps(done.details["layers"]))]
    assert [row.name for row in rows] == names
    for row in rows:
        assert row.note.startswith("50.0 % zeros")
        assert row.output_sqnr_db is not None
        assert (row.plain_output_sqnr_db is None) == (method == "magnitude")
        if method == "sparsegpt":
            assert row.plain_output_sqnr_db is not None
            assert row.output_sqnr_db > row.plain_output_sqnr_db


def test_a_layers_output_error_is_that_of_its_outputs(llama: Alone) -> None:
    """The first layer sees unchanged inputs, so its row can be had by running both weights on them."""
    from openclaw_opt.models.calibrate import run_batches, watched
    from openclaw_opt.numerics.quantization import SqnrMeter

    done = llama(Sparsify(pattern="2:4", method="wanda"), batches=tokens())
    reference, made = open_model(llama.model), weights(done.artifact)["layers.0.qkv"]
    meter = SqnrMeter()
    with watched(reference, ["layers.0.qkv"], lambda name, x, y: meter.add(y, x @ made.T)):
        run_batches(reference, tokens(), silent, "running")
    assert done.details["layers"][0]["output_sqnr_db"] == pytest.approx(meter.db, abs=1e-3)


@pytest.mark.parametrize("family", DECODERS)
def test_every_family_keeps_its_pattern_and_opens_again(family: str, tmp_path: Path) -> None:
    runner = Alone(tmp_path, family)
    done = runner(Sparsify(pattern="2:4", keep=("layers.0.*",)), batches=tokens(8, 32))
    facts = read_facts(done.artifact)
    assert "head" in facts.sparse
    assert not any(name.startswith("layers.0.") for name in facts.sparse)
    module = open_model(done.artifact)
    assert isinstance(module, Decoder)
    assert all(is_two_of_four(module.get_submodule(name).weight) for name in facts.sparse)  # type: ignore[arg-type]
    assert zeros_share(module.embed.weight) < 0.01, "a tied embedding keeps its own weight"
    assert not module.spec.tied
    with torch.no_grad():
        assert torch.isfinite(module(*tokens(2, 32).batches[0])[0]).all()


def test_an_encoder_and_a_vision_model(tmp_path: Path) -> None:
    from openclaw_opt.models.calibrate import sentence_batches

    ids = torch.randint(3, 256, (8, 16), generator=torch.Generator().manual_seed(1))
    sentences = Calibration(sentence_batches(ids, torch.ones_like(ids), 4), 8, 128)
    bert = Alone(tmp_path / "bert", "bert")
    done = bert(Sparsify(pattern="2:4", method="wanda"), batches=sentences)
    assert done.details["unreached"] == []
    assert set(read_facts(done.artifact).sparse) == set(weights(bert.model))
    images = Calibration(((torch.randn(4, 3, 16, 16),),), 4, 0)
    vit = Alone(tmp_path / "vit", "vit")
    facts = read_facts(vit(Sparsify(pattern="2:4"), batches=images).artifact)
    assert facts.sparse
    assert not any("classifier" in name for name in facts.sparse)


def test_magnitude_needs_no_data(llama: Alone) -> None:
    done = llama(Sparsify(pattern="unstructured", ratio=0.25, method="magnitude"))
    assert all(row["output_sqnr_db"] is None for row in done.details["layers"])
    assert all(share == pytest.approx(0.25, abs=1e-3) for share in done.details["zeros"].values())


# Zeros stay.


@pytest.mark.slow
@pytest.mark.parametrize(("fmt", "algorithm"), PAIRS)
def test_quantizing_keeps_every_zero(llama: Alone, sparse: Model, fmt: Any, algorithm: Any) -> None:
    done = llama(Quantize(format=fmt, algorithm=algorithm), sparse, tokens())
    before, module = weights(sparse), open_model(done.artifact)
    facts = read_facts(done.artifact)
    assert facts.sparse == read_facts(sparse).sparse
    for name in facts.sparse:
        layer = module.get_submodule(name)
        assert isinstance(layer, QuantLayer)
        assert not bool(layer.weight_values(torch.float32)[before[name] == 0].any())
        assert is_two_of_four(layer.weight_values(torch.float32))


def test_gptq_that_fills_zeros_is_caught(llama: Alone, sparse: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    real = converting.refined
    monkeypatch.setattr(converting, "refined", lambda *arguments: real(*arguments[:5]))
    with pytest.raises(VerificationError, match=r"layers\.0\.qkv: \d+ of 4096 zeros are lost by rounding"):
        llama(Quantize(format="int4", algorithm="gptq"), sparse, tokens())


def test_the_graph_holds_them_and_says_so(llama: Alone, sparse: Model, tmp_path: Path) -> None:
    quantized = llama(Quantize(format="int8", algorithm="max", keep=("layers.1.*", "head")), sparse, tokens()).artifact
    graph = export_graph(quantized, tmp_path / "graph", dtype="float16")
    assert graph.facts.sparse == read_facts(sparse).sparse
    tensors = {tensor.name: tensor for tensor in onnx.load(str(graph.onnx)).graph.initializer}
    for name in graph.facts.sparse:
        (found,) = [key for key in tensors if key.startswith(f"{name}.weight") and len(tensors[key].dims) == 2]
        held = np.asarray(onnx.numpy_helper.to_array(tensors[found]), np.float32)
        module = open_model(sparse).get_submodule(name)
        assert held.T.shape == module.weight.shape  # type: ignore[union-attr]
        assert is_two_of_four(torch.from_numpy(np.ascontiguousarray(held.T)))


def test_a_pattern_that_is_not_there_is_caught(llama: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(weight: torch.Tensor, ratio: float | None) -> Any:
        return sparsifying.Sparse(weight, weight != 0)

    monkeypatch.setattr(sparsifying, "by_magnitude", wrong)
    with pytest.raises(VerificationError, match=r"layers\.0\.qkv: a group of four has more than two"):
        llama(Sparsify(pattern="2:4", method="magnitude"))


def test_nan_is_named(llama: Alone, tmp_path: Path) -> None:
    spoiled = Alone(tmp_path, "llama")
    module = open_model(spoiled.model)
    module.get_submodule("layers.1.o").weight[3, 3] = float("nan")  # type: ignore[index, operator]
    from openclaw_opt.models.store import save_model

    model = save_model(module, read_facts(spoiled.model), tmp_path / "nan", spoiled.model.assets)
    with pytest.raises(RecipeError, match=r"layers\.1\.o\.weight: 1 of 4096 numbers are NaN"):
        spoiled(Sparsify(pattern="2:4"), model, tokens())


# What each engine does with them.


def facts_of(pattern: str, fmt: str = "") -> GraphFacts:
    quantized = [{"name": "a", "format": fmt}] if fmt else []
    common = {"task": "decoder", "dialect": "portable", "dtype": "float16", "family": "llama", "opset": 23}
    return GraphFacts.model_validate(
        {**common, "quantized": quantized, "sparse": {"a": {"pattern": pattern, "share": 0.5}}}
    )


def test_every_backend_has_a_row() -> None:

    assert set(zeros.ENGINES) == {*CANDIDATES, "rtx", "datacenter"}


@pytest.mark.parametrize(
    ("pattern", "fmt", "target", "backend", "wanted"),
    [
        ("2:4", "", "l4", "tensorrt", "2:4 zeros: not used by tensorrt-rtx; size and speed do not change "
         "(its builder writes the same bytes with SPARSE_WEIGHTS and without)"),
        ("2:4", "", "l4", "onnxruntime", "2:4 zeros: not used by ONNX Runtime; size and speed do not change (its kernels are dense)"),
        ("2:4", "", "l4", "gguf", "2:4 zeros: not used by llama.cpp; size and speed do not change (its kernels are dense)"),
        ("2:4", "", "a100-80", "tensorrt", "2:4 zeros: tensorrt may skip them in float16 layers (the flag SPARSE_WEIGHTS is set); "
         "it takes a sparse kernel only where that is faster, and its build log says for how many layers"),
        ("2:4", "int4", "a100-80", "tensorrt", "2:4 zeros: not used by tensorrt for int4; size and speed do not change"),
        ("unstructured", "int8", "a100-80", "tensorrt", "unstructured zeros: not used by tensorrt; size and speed do not change"),
    ],
)  # fmt: skip
def test_each_engines_line(pattern: str, fmt: str, target: str, backend: str, wanted: str) -> None:
    assert zeros.notes(facts_of(pattern, fmt), (TARGETS[target],), backend) == (wanted,)


def test_fastest_speaks_for_each_candidate_and_no_zeros_say_nothing() -> None:
    assert len(zeros.notes(facts_of("2:4"), (CPU,), "fastest")) == len(CANDIDATES)
    assert zeros.notes(facts_of("2:4").model_copy(update={"sparse": {}}), (CPU,), "onnxruntime") == ()


@pytest.mark.parametrize(
    ("log", "wanted"),
    [
        ("[V] (Sparsity) Found 39 layer(s) eligible to use sparse tactics: a, b\n[V] (Sparsity) Chose 7 layer(s) using sparse tactics: a\n",
         "the builder found them in 39 layers and runs 7 of these with sparse kernels"),
        ("[I] (Sparsity) Layers eligible for sparse math: conv1, conv2, conv3\n"
         "[I] (Sparsity) TRT inference plan picked sparse implementation for layers: \n",
         "the builder found them in 3 layers and runs 0 of these with sparse kernels"),
        ("[I] nothing\n", "the build log does not say which layers run sparse kernels"),
    ],
)  # fmt: skip
def test_the_build_log_says_what_was_chosen(log: str, wanted: str) -> None:
    assert trt_sparsity.notes(log.splitlines()) == (f"2:4 zeros: {wanted}",)


def test_the_builder_is_asked_where_it_can(tmp_path: Path, sparse: Model) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    from openclaw_opt.backends import tensorrt, trt_child
    from openclaw_opt.backends.trt_profiles import Profiles

    graph = export_graph(sparse, tmp_path / "graph", dtype="float16")
    options = tensorrt.TensorrtOptions(profiles=Profiles(prompt=(1, 16, 32)))
    requests = {
        name: tensorrt._Build(graph, (TARGETS[name],), options, tmp_path, "")._request() for name in ("a100-80", "l4")
    }
    assert {name: request["sparse"] for name, request in requests.items()} == {"a100-80": True, "l4": False}
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    request: Any = {**requests["l4"], "sparse": True}  # the flag has the same name in both modules
    config = trt_child.configure(trt, builder, request, None)
    assert config.get_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    assert not trt_child.configure(trt, builder, {**request, "sparse": False}, None).get_flag(
        trt.BuilderFlag.SPARSE_WEIGHTS
    )


def test_check_says_it(tiny_llama: Path, write_recipe: Any) -> None:
    recipe = write_recipe(("passes:\n", "passes:\n  - sparsify: {pattern: 2:4}\n"))
    said = CliRunner().invoke(app, ["check", "--recipe", str(recipe)])
    assert said.exit_code == 0, said.output
    assert "2:4 zeros: not used by ONNX Runtime; size and speed do not change (its kernels are dense)" in said.output


# What cannot be done, from facts alone.


def complaints(part: Any, spec: Any, **changes: Any) -> list[tuple[str, str, str]]:
    view = View(
        **{"spec": spec, "target": CPU, "backend": "onnxruntime", "calibration": TEXT, "earlier": (), **changes}
    )
    return [(found.what, found.option, found.fix) for found in part.check(view)]


@pytest.fixture(scope="module")
def spec(llama: Alone) -> Any:
    return read_facts(llama.model).spec


SPARSE = Sparsify(pattern="2:4")


@pytest.mark.parametrize(
    ("options", "changes", "wanted"),
    [
        ({}, {}, []),
        ({"pattern": "unstructured"}, {}, []),
        ({"method": "magnitude"}, {"calibration": None}, []),
        ({"ratio": 0.5}, {}, [("ratio has no effect with 2:4, which is always a half", "ratio", "leave it out")]),
        ({"method": "wanda", "damping": 0.1}, {}, [("damping has no effect with wanda", "damping", "leave it out")]),
        ({}, {"calibration": None}, [("sparsegpt needs calibration data", "method", "add `calibration` to `data`, or method: magnitude")]),
        ({}, {"calibration": IMAGES}, [("calibration data is images, the model takes text", "", "change data.calibration")]),
        ({"keep": ("layer.0.*",)}, {}, [("keep: 'layer.0.*' matches no layer", "keep", "did you mean 'layers.0.o'?")]),
        ({"keep": ("*",)}, {}, [("keep leaves no layer to make sparse", "keep", "keep: [head]")]),
        ({"pattern": "unstructured", "ratio": 0.001}, {}, [("ratio 0.001 makes no weight of the 64 inputs of layers.0.qkv zero", "ratio", "ratio: 0.5")]),
        ({"pattern": "unstructured", "ratio": 0.999}, {}, [("ratio 0.999 makes every weight of the 64 inputs of layers.0.qkv zero", "ratio", "ratio: 0.5")]),
        ({}, {"earlier": (Quantize(format="int8"),)}, [("quantized weights cannot be made sparse", "", "put sparsify before quantize")]),
        ({}, {"earlier": (SPARSE,)}, [("a second sparsify would fill zeros of the first", "", "say it in one pass, with keep for what stays dense")]),
        ({"keep": ("nothing",)}, {"earlier": (Prune(ffn=0.4),)}, []),
    ],
)  # fmt: skip
def test_each_complaint(spec: Any, options: dict[str, Any], changes: dict[str, Any], wanted: list[Any]) -> None:
    assert complaints(Sparsify(**{"pattern": "2:4", **options}), spec, **changes) == wanted


def test_what_would_break_the_zeros_is_refused(spec: Any) -> None:
    assert complaints(Rotate(), spec, earlier=(SPARSE,)) == [
        ("a rotation mixes zeros with what is beside them", "", "put rotate before sparsify")
    ]
    assert complaints(Prune(ffn=0.4), spec, earlier=(SPARSE,)) == [
        ("taking out inputs breaks up groups of four", "", "put prune before sparsify")
    ]


def test_odd_inputs_are_named_with_a_fix_that_is_accepted(spec: Any) -> None:
    odd = spec.model_copy(update={"layers": tuple(layer.model_copy(update={"ffn": 90}) for layer in spec.layers)})
    ((what, option, fix),) = complaints(SPARSE, odd)
    assert (what, option) == ("groups of 4 do not divide the 90 inputs of layers.0.down", "pattern")
    kept = tuple(fix.removeprefix("keep: [").removesuffix("]").split(", "))
    assert complaints(Sparsify(pattern="2:4", keep=kept), odd) == []
    assert complaints(Sparsify(pattern="unstructured"), odd) == []


def test_convolutions_are_refused_by_name(tmp_path: Path) -> None:
    found = complaints(
        SPARSE, spec_from_config(open_tiny(write_checkpoint(tmp_path, "resnet")).config), calibration=IMAGES
    )
    assert found == [("sparsify takes linear layers, resnet has convolutions", "", "take sparsify out")]


def test_quantized_models_and_pruned_sizes_are_refused_by_run_too(llama: Alone) -> None:
    quantized = llama(Quantize(format="int8", algorithm="max"), batches=tokens()).artifact
    with pytest.raises(RecipeError, match=r"layers\.0\.qkv: quantized weights cannot be made sparse"):
        llama(SPARSE, quantized, tokens())
    with pytest.raises(RecipeError, match=r"sparsify\.keep: keep: 'nothing' matches no layer"):
        llama(Sparsify(pattern="2:4", keep=("nothing", "head")), batches=tokens())


def test_yaml_reads_2_4_as_minutes_and_we_do_not() -> None:
    assert Sparsify.model_validate({"pattern": 124}).pattern == "2:4"
    with pytest.raises(ValueError, match="input_value='2:8'"):
        Sparsify.model_validate({"pattern": 128})


def test_check_imports_no_torch() -> None:
    code = "import sys; import openclaw_opt.passes.sparsify; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
