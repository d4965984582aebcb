"""`quantize: {format: auto}`: an exact choice, a measured correction, an honest count of bytes, and no look at evaluation data."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openclaw_opt.artifacts import Graph, Model
from openclaw_opt.backends.engines import open_session
from openclaw_opt.backends.onnxruntime import build as build_ort
from openclaw_opt.cli.progress import Silent
from openclaw_opt.data import parse_source
from openclaw_opt.errors import BudgetMissed, RecipeError
from openclaw_opt.graph import to_onnxruntime, to_tensorrt
from openclaw_opt.metrics.roofline import _bytes as constant_bytes
from openclaw_opt.metrics.roofline import layer_seconds
from openclaw_opt.models.calibrate import decoder_calibration
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.export import export_graph
from openclaw_opt.models.footprint import weight_bytes
from openclaw_opt.models.linear import QuantLinear, replace_layer
from openclaw_opt.models.load import load_model
from openclaw_opt.models.plain import plain_parts
from openclaw_opt.models.schemes import Scheme
from openclaw_opt.models.sensitivity import Journal, mixed_loss, sensitivities
from openclaw_opt.models.spec import read_facts
from openclaw_opt.models.store import open_model, save_model
from openclaw_opt.numerics.correction import best, closest, correct
from openclaw_opt.numerics.knapsack import SLACK, Choice, choose
from openclaw_opt.passes import View, Work
from openclaw_opt.passes.quantize import Quantize
from openclaw_opt.pipeline import build, work_of
from openclaw_opt.plan import check_recipe, make_plan
from openclaw_opt.recipe import load_recipe, resolved_yaml
from openclaw_opt.store import Store
from openclaw_opt.targets import host, target_named
from tests.tiny import open_tiny, write_checkpoint

AUTO = 'quantize: {format: auto, candidates: [int4, int8_weight_only, fp16], within: {kl.mean: "<= 0.05"}'


# The choice.


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[dict[str, float]], list[dict[str, float]], float]:
    layers = draw(st.integers(1, 5))
    rows = [draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True)) for _ in range(layers)]
    losses = [{name: draw(st.integers(0, 1000)) / 1000 for name in row} for row in rows]
    costs = [{name: float(draw(st.integers(1, 60))) for name in row} for row in rows]
    return losses, costs, draw(st.integers(0, 3000)) / 1000


@settings(max_examples=60, deadline=None)
@given(problems())
def test_the_choice_is_the_cheapest_there_is(
    problem: tuple[list[dict[str, float]], list[dict[str, float]], float],
) -> None:
    losses, costs, allowance = problem
    every = [
        (sum(costs[i][c] for i, c in enumerate(picks)), sum(losses[i][c] for i, c in enumerate(picks)))
        for picks in itertools.product(*losses)
    ]
    within = [one for one in every if one[1] <= allowance * (1 + SLACK)]
    found = choose(losses, costs, allowance)
    if not within:
        assert found is None
        return
    assert found is not None
    least = min(cost for cost, _ in within)
    assert found.cost == pytest.approx(least)
    assert found.loss <= allowance * (1 + 2 * SLACK) + 1e-12
    assert found.loss == pytest.approx(min(loss for cost, loss in within if cost == least), abs=1e-6), (
        "ties go to less loss"
    )
    assert found.bound <= found.cost
    assert found.gap < 1e-6
    assert found.cost == sum(costs[i][c] for i, c in enumerate(found.picks))


# The correction.

LOSSES = [{"int4": 0.01 * (i + 1), "int8": 0.0004 * (i + 1), "fp16": 0.0} for i in range(12)]
COSTS = [{"int4": 4.5, "int8": 8.0, "fp16": 32.0} for _ in range(12)]


def corrected(allowed: float, curve: Callable[[float], float], most: int = 12) -> tuple[list[Any], list[Choice]]:
    measured: list[Choice] = []

    def measure(choice: Choice) -> float:
        measured.append(choice)
        return allowed - curve(choice.loss)

    highest = sum(max(row.values()) for row in LOSSES)
    return correct(lambda a: choose(LOSSES, COSTS, a), measure, 0.0, highest, most), measured


@pytest.mark.slow
@pytest.mark.parametrize("curve", [lambda x: x, lambda x: 3 * x, lambda x: x**1.3, lambda x: x / 2 + x * x])
def test_the_correction_finds_the_cheapest_choice_that_keeps_the_rule(curve: Callable[[float], float]) -> None:
    rounds, measured = corrected(0.05, curve)
    taken = best(rounds)
    assert taken is not None
    assert curve(taken.choice.loss) <= 0.05
    assert len({one.picks for one in measured}) == len(measured) <= 12, "nothing is measured twice"
    # The best that any allowance gives, by trying many.
    solved = [choose(LOSSES, COSTS, a / 2000) for a in range(400)]
    cheapest = min(one.cost for one in solved if one is not None and curve(one.loss) <= 0.05)
    assert taken.choice.cost <= cheapest * 1.03


def test_the_correction_stops_at_what_cannot_or_need_not_be_corrected() -> None:
    rounds, _ = corrected(-0.1, lambda x: x)
    assert best(rounds) is None
    assert len(rounds) == 1
    assert closest(rounds).choice.picks == ("fp16",) * 12
    rounds, _ = corrected(1.0, lambda x: x)
    assert len(rounds) == 2
    assert best(rounds).choice.picks == ("int4",) * 12  # type: ignore[union-attr]


def test_measurements_are_bounded() -> None:
    rounds, _ = corrected(0.05, lambda x: x, most=4)
    assert len(rounds) <= 4
    assert best(rounds) is not None


# Bad recipes.


def problem_of(write_recipe: Callable[..., Path], passes: str, *more: str) -> str:
    settings_ = [f"passes=[{{{passes}}}, export, fuse, build]", "budgets={}", *more]
    with pytest.raises(RecipeError) as caught:
        check_recipe(load_recipe(write_recipe(), settings=settings_))
    return str(caught.value)


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        ("AUTO [int4, fp16]}", 'format: auto wants what the choice must keep\n  fix: within: {bits_per_byte.recovery: ">= 0.99"}'),
        ('quantize: {format: int4, KL', "within has no effect with format: int4\n  fix: format: auto"),
        ("quantize: {format: int4, candidates: [int4, fp16]}", "candidates has no effect with format: int4"),
        ("quantize: {format: int4, minimise: time}", "minimise has no effect with format: int4"),
        ('quantize: {format: auto, KL', "chooses among two candidates or more; there is none"),
        ('AUTO [int4], KL', "there is int4\n  fix: format: int4"),
        ('AUTO [int4, int4], KL', "candidate int4 (gptq, blocks of 32) is there twice"),
        ('AUTO [int4, {format: int4, block: 32}], KL', "is there twice"),
        ('AUTO [fp16, fp16], KL', "candidate fp16 is there twice"),
        ('AUTO [int4, itn8], KL', "'itn8' is no format\n  fix: did you mean 'int8'?"),
        ('AUTO [int4, {format: int8, bloc: 4}], KL', "unknown key 'bloc' of int8\n  fix: did you mean 'block'?"),
        ('AUTO [int4, {format: int8, alpha: 2}], KL', "int8: alpha: input should be less than or equal to 1; got 2"),
        ('AUTO [int4, mxfp8], KL', "mxfp8 is not realised"),
        ('AUTO [int4, fp8], KL', "candidate fp8: onnxruntime does not realise fp8"),
        ('AUTO [int4, {format: fp16, block: 4}], KL', "fp16 has no options"),
        ('AUTO [int8, fp16], block: 32, KL', "block has no effect with int8"),
        ('AUTO [int4, fp16], within: {kl.maen: "<= 1"}}', "'kl.maen' is no measurement of a decoder\n  fix: did you mean 'kl.mean'?"),
        ('AUTO [int4, fp16], within: {latency.decode.p50_ms: "<= 1"}}', "'latency.decode.p50_ms' is not measured of calibration data of a decoder"),
        ('AUTO [int4, fp16], within: {accuracy.top1: ">= 1"}}', "'accuracy.top1' is not measured of calibration data of a decoder"),
        ('AUTO [int4, fp16], within: {kl.mean: "<= 1 %"}}', "a rule is a comparison with a number; got '<= 1 %'"),
        ('AUTO [int4, fp16], within: {kl.mean: ">= 1"}}', "kl.mean is better lower: kl.mean >= 1 asks for a loss"),
        ('AUTO [int4, fp16], within: {kl.mean: {rul: "<= 1"}}}', "unknown key 'rul'\n  fix: did you mean 'rule'?"),
        ('AUTO [int4, fp16], within: {kl.mean: "<= 1"}, keep: [laters.*]}', "keep: 'laters.*' matches no layer"),
        ('AUTO [int4, fp16], within: {kl.mean: "<= 1"}, held_back: 0.05}', "are held back to measure the choice on, and it takes 8"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_any_work(write_recipe: Callable[..., Path], passes: str, said: str) -> None:
    passes = passes.replace("AUTO", "quantize: {format: auto, candidates:").replace("KL", 'within: {kl.mean: "<= 1"}}')
    assert said in problem_of(write_recipe, passes)


def test_gguf_takes_no_int8_activations_and_no_other_blocks(write_recipe: Callable[..., Path]) -> None:
    passes = 'quantize: {format: auto, candidates: [{format: int4, block: 64}, int8], within: {kl.mean: "<= 1"}}'
    said = problem_of(write_recipe, passes, "passes.build.backend=gguf")
    assert "candidate int4: GGUF has int4 in blocks of 32, not 64" in said
    assert "candidate int8: gguf does not realise int8" in said


def test_a_card_that_cannot_is_named(write_recipe: Callable[..., Path]) -> None:
    passes = 'quantize: {format: auto, candidates: [nvfp4, fp8, fp16], within: {kl.mean: "<= 1"}}'
    assert "candidate nvfp4: tensorrt does not realise nvfp4" in problem_of(write_recipe, passes, "target=l4")


def test_a_resolved_recipe_reads_back(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    passes = "passes=[{" + AUTO + ", block: 16}}, export, fuse, build]"
    recipe = load_recipe(write_recipe(), settings=[passes, "budgets={}"])
    again = tmp_path / "again.yaml"
    again.write_text(resolved_yaml(recipe))
    assert load_recipe(again).passes == recipe.passes


# One graph that holds every format, and what its bytes are.

MIX = {
    "layers.0.qkv": Scheme("int4", "rtn", block=32),
    "layers.0.o": Scheme("int8", "max"),
    "layers.0.gate_up": Scheme("int8_weight_only", "max"),
    "layers.0.down": Scheme("uint4", "rtn", block=32),
    "layers.1.qkv": Scheme("int8_per_token", "max"),
    "layers.1.o": Scheme("int4", "rtn", block=64),
}  # fmt: skip
TENSORRT_MIX = {
    "layers.0.qkv": Scheme("int4", "rtn", block=32),
    "layers.0.o": Scheme("int8", "max"),
    "layers.0.down": Scheme("int8_weight_only", "max"),
    "layers.1.gate_up": Scheme("int8", "max"),
    "layers.1.o": Scheme("int4", "rtn", block=32),
}  # fmt: skip
GGUF_MIX = {name: scheme for name, scheme in MIX.items() if scheme.format in ("int4", "int8_weight_only")}


def quantized(source: Model, mix: dict[str, Scheme], folder: Path) -> Model:
    """The layers of `mix` rounded to nearest, the others float; inputs are taken to lie within 4."""
    module = open_model(source)
    for name, scheme in mix.items():
        replace_layer(module, name, QuantLinear.from_parts(plain_parts(module.get_submodule(name), scheme, 4.0)))
    return save_model(module, read_facts(source), folder, source.assets)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("mixed")
    checkpoint = write_checkpoint(folder / "checkpoint", "llama", intermediate_size=128)
    return load_model(open_tiny(checkpoint), folder / "model")[0]


def held_bytes(graph: Graph, layer: str) -> int:
    """Bytes of the constants of one layer's weight."""
    proto = onnx.load(str(graph.onnx), load_external_data=False).graph
    return sum(constant_bytes(one) for one in proto.initializer if one.name.startswith(f"{layer}.weight"))


def expected_bytes(model: Model, backend: str) -> dict[str, int]:
    facts, plain = read_facts(model), open_model(model)
    sizes = {name: (layer.out_features, layer.in_features) for name, layer in linears(plain)}
    return {name: weight_bytes(shape, facts.quant.get(name), backend) for name, shape in sizes.items()}


def linears(module: torch.nn.Module) -> list[tuple[str, Any]]:
    return [(n, one) for n, one in module.named_modules() if isinstance(one, (torch.nn.Linear, QuantLinear))]


def test_onnxruntime_runs_every_format_in_one_graph(tiny_model: Model, tmp_path: Path) -> None:
    model = quantized(tiny_model, MIX, tmp_path / "model")
    portable = export_graph(model, tmp_path / "portable", dtype="float32")
    graph = to_onnxruntime.lower(portable, tmp_path / "lowered", accuracy_level=0)
    assert graph.facts.fusions["MatMulNBits"] == 4
    ids = torch.randint(3, 256, (2, 12), generator=torch.Generator().manual_seed(0)).numpy()
    with open_session(graph) as ran, open_session(model) as wanted:
        difference = np.abs(ran.logits(ids) - wanted.logits(ids)).max() / np.abs(wanted.logits(ids)).max()  # type: ignore[attr-defined]
    assert difference < 0.05, "one rounding of int8 may turn over"
    expected = expected_bytes(model, "onnxruntime")
    assert {name: held_bytes(graph, name) for name in expected} == expected
    engine = build_ort(graph, host(), tmp_path / "engine", lambda part, text: None, require_realised=True)
    assert {row.layer: row.asked for row in engine.facts.receipt} == {n: scheme.format for n, scheme in MIX.items()}
    assert all(row.ok for row in engine.facts.receipt)


@pytest.mark.slow
def test_tensorrt_builds_int4_and_int8_and_float16_in_one_engine(tiny_model: Model, tmp_path: Path) -> None:
    from openclaw_opt.backends.tensorrt import TensorrtOptions, build
    from openclaw_opt.backends.trt_profiles import Profiles

    model = quantized(tiny_model, TENSORRT_MIX, tmp_path / "model")
    graph = to_tensorrt.lower(export_graph(model, tmp_path / "portable", dtype="float16"), tmp_path / "lowered")
    expected = expected_bytes(model, "tensorrt")
    assert {name: held_bytes(graph, name) for name in expected} == expected
    options = TensorrtOptions(profiles=Profiles(batch=(1, 1, 2), prompt=(1, 8, 16)))
    facts = build(graph, target_named("rtx4090"), options, tmp_path / "engine", lambda phase, part: None).facts
    asked = {row.layer: row.asked for row in facts.receipt}
    assert asked == {name: scheme.format for name, scheme in TENSORRT_MIX.items()}
    assert all(row.ok for row in facts.receipt)


def test_gguf_holds_q4_and_q8_and_float_in_one_file(tiny_model: Model, tmp_path: Path) -> None:
    from openclaw_opt.backends import gguf

    if why := gguf.missing():
        pytest.skip(why)
    from gguf import GGUFReader

    mix = {name: replace(scheme, block=scheme.block and 32) for name, scheme in GGUF_MIX.items()}
    model = quantized(tiny_model, mix, tmp_path / "model")
    portable = export_graph(model, tmp_path / "portable", dtype="float32")
    graph = to_onnxruntime.lower(portable, tmp_path / "lowered", accuracy_level=0)
    facts = gguf.build(graph, host(), tmp_path / "engine").facts
    kinds = {"int4": "Q4_0", "int8_weight_only": "Q8_0"}
    assert {(row.layer, row.realised) for row in facts.receipt} == {(n, kinds[s.format]) for n, s in mix.items()}
    parts = {"attn_qkv": "qkv", "attn_output": "o", "ffn_gate": "gate_up", "ffn_up": "gate_up", "ffn_down": "down"}
    held: dict[str, int] = {}
    for tensor in GGUFReader(tmp_path / "engine" / "model.gguf").tensors:
        words = tensor.name.split(".")
        if words[0] == "blk" and words[2] in parts:
            name = f"layers.{words[1]}.{parts[words[2]]}"
            held[name] = held.get(name, 0) + int(tensor.n_bytes)
    expected = expected_bytes(model, "gguf")
    assert held == {name: size for name, size in expected.items() if name != "head"}


def test_openvino_holds_int4_and_int8_and_float_in_one_engine(tiny_model: Model, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="pip install 'openclaw-opt[openvino]'")
    from openclaw_opt.backends import openvino

    model = quantized(tiny_model, GGUF_MIX, tmp_path / "model")
    graph = export_graph(model, tmp_path / "portable", dtype="float32")
    expected = expected_bytes(model, "openvino")
    assert {name: held_bytes(graph, name) for name in expected} == expected
    facts = openvino.build(graph, host(), tmp_path / "engine").facts
    kinds = {"int4": "i4 FullyConnected", "int8_weight_only": "i8 FullyConnected"}
    assert {(row.layer, row.realised) for row in facts.receipt} == {(n, kinds[s.format]) for n, s in GGUF_MIX.items()}


# Sensitivity.


def test_sensitivity_is_the_loss_with_that_layer_alone_and_goes_on_where_it_was(
    tiny_model: Model, tmp_path: Path
) -> None:
    module = open_model(tiny_model)
    assert isinstance(module, Decoder)
    made = {
        name: {
            scheme.format: QuantLinear.from_parts(plain_parts(module.get_submodule(name), scheme, 4.0))
            for scheme in (Scheme("int4", "rtn", block=32), Scheme("int8_weight_only", "max"))
        }
        for name in ("layers.0.o", "layers.1.qkv", "head")
    }
    ids = torch.randint(3, 256, (6, 24), generator=torch.Generator().manual_seed(0))
    data, file = decoder_calibration(ids, 4), tmp_path / "journal.jsonl"
    told: list[str] = []
    found = sensitivities(module, made, data, Journal(file, "of the test"), lambda part, text: told.append(text))
    assert len(told) == 6
    for name, row in made.items():
        for label, layer in row.items():
            assert found[name][label] == pytest.approx(mixed_loss(module, {name: layer}, data), rel=1e-5)
    assert found["layers.0.o"]["int4"] > found["layers.0.o"]["int8_weight_only"] > 0
    assert type(module.get_submodule("layers.0.o")) is torch.nn.Linear, "the module is as it was"
    # Killed in the middle of a line: what is whole is taken over, the rest is found again.
    lines = [line for line in file.read_text().splitlines() if line]
    file.write_text("\n".join(lines[:4]) + "\n" + lines[4][:20])
    told.clear()
    again = sensitivities(module, made, data, Journal(file, "of the test"), lambda part, text: told.append(text))
    assert again == found
    assert len(told) == 2
    told.clear()
    sensitivities(module, made, data, Journal(file, "of other weights"), lambda part, text: told.append(text))
    assert len(told) == 6


def test_small_losses_add_up(tiny_model: Model) -> None:
    module = open_model(tiny_model)
    scheme = Scheme("int8_weight_only", "max")
    names = [name for name, _ in linears(module)]
    made = {n: QuantLinear.from_parts(plain_parts(module.get_submodule(n), scheme, 4.0)) for n in names}
    data = decoder_calibration(torch.randint(3, 256, (8, 48), generator=torch.Generator().manual_seed(0)), 8)
    alone = sum(mixed_loss(module, {name: layer}, data) for name, layer in made.items())
    assert mixed_loss(module, made, data) == pytest.approx(alone, rel=0.25)


# Whole builds.


def auto_recipe(write_recipe: Callable[..., Path], within: str, *changes: tuple[str, str], name: str = "auto") -> Path:
    old = "quantize: {format: int8, algorithm: max}"
    new = f"quantize: {{format: auto, candidates: [{{format: int4, algorithm: rtn}}, int8_weight_only, fp16], within: {within}}}"
    return write_recipe((old, new), ("samples: 16, length: 64", "samples: 24, length: 32"), *changes, name=name)


@pytest.mark.slow
def test_a_whole_build_keeps_its_budget_whatever_the_evaluation_data_is(
    write_recipe: Callable[..., Path], corpora: dict[str, Path], tmp_path: Path
) -> None:
    within = '{kl.mean: "<= 0.02"}'
    store = Store(tmp_path / "cache")
    recipe = load_recipe(auto_recipe(write_recipe, within), settings=["budgets={}"])
    report = build(recipe, store=store, output=tmp_path / "one", hooks=Silent())
    record = next(one for one in report.passes if one.word == "quantize")
    facts = record.details["mixed"]
    got = {one["layer"]: one["format"] for one in facts["choice"]}
    assert len(set(got.values())) > 1, "a mix"
    assert [one["holds"] for one in facts["rounds"] if one["taken"]] == [True]
    taken = next(one for one in facts["rounds"] if one["taken"])
    assert taken["readings"][0]["high"] <= 0.02
    assert facts["solver_gap"] == 0
    low = {name: word for name, word in got.items() if word != "fp16"}
    assert {layer.name: layer.format for layer in record.layers} == low
    assert {row.layer: row.asked for row in report.receipt} == low
    assert set(record.details["kept"]) == set(got) - set(low)
    assert "Mixed precision" in (tmp_path / "one" / "report.md").read_text()
    page = (tmp_path / "one" / "report.html").read_text()
    assert "Sensitivity of each layer" in page
    # Other evaluation data: the same key, so the same choice, taken from the cache without a look.
    other = corpora["calibration"].with_name("other.txt")
    other.write_text("\n".join(" ".join(f"<{(7 * i * j) % 200 + 5}>" for j in range(40)) for i in range(1, 60)))
    second = load_recipe(
        auto_recipe(write_recipe, within, (str(corpora["evaluation"]), str(other)), name="second"),
        settings=["budgets={}"],
    )
    keys = [[step.key for step in make_plan(one, store).steps] for one in (recipe, second)]
    assert keys[0] == keys[1]
    # And made anew, with evaluation data that cannot even be read while the pass runs.
    fresh = Store(tmp_path / "fresh")
    plan = make_plan(second, fresh)
    source = load_model(plan.checkpoint, tmp_path / "loaded")[0]
    other.unlink()
    corpora["evaluation"].rename(tmp_path / "away")
    try:
        done = plan.steps[1].part.run(source, work_of(plan, tmp_path / "out", fresh, lambda part, text: None))
    finally:
        (tmp_path / "away").rename(corpora["evaluation"])
    again = json.loads(json.dumps(done.details["mixed"]))
    assert {one["layer"]: one["format"] for one in again["choice"]} == got
    assert again["sensitivity"] == facts["sensitivity"]


@pytest.mark.slow
def test_what_cannot_be_kept_says_how_close_it_came(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    file = auto_recipe(write_recipe, '{kl.mean: "<= 1e-9"}', (", fp16]", "]"))
    with pytest.raises(BudgetMissed) as caught:
        build(
            load_recipe(file, settings=["budgets={}"]),
            store=Store(tmp_path / "cache"),
            output=tmp_path / "one",
            hooks=Silent(),
        )
    assert str(caught.value).startswith(
        "quantize.within: no choice keeps within (kl.mean <= 1e-09) on held-back calibration data; the closest, of predicted loss "
    )
    assert "or fp16 among the candidates" in str(caught.value)
    assert not (tmp_path / "one").exists()


@pytest.mark.slow
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_layer_is_named(write_recipe: Callable[..., Path], tmp_path: Path, bad: float) -> None:
    from safetensors.torch import load_file, save_file

    write_recipe(name="spoilt", copy=True)
    file = auto_recipe(write_recipe, '{kl.mean: "<= 1"}')
    weights = tmp_path / "checkpoint" / "model.safetensors"
    state = load_file(weights)
    state["model.layers.1.mlp.down_proj.weight"][0, 0] = bad
    save_file(state, weights, metadata={"format": "pt"})
    recipe = load_recipe(file, settings=["budgets={}", f"model={tmp_path / 'checkpoint'}", "metrics=[size]"])
    plan = make_plan(recipe, Store(tmp_path / "cache"))
    source = load_model(plan.checkpoint, tmp_path / "loaded")[0]
    with pytest.raises(RecipeError, match=r"layers\.1\.down.*NaN or infinite"):
        plan.steps[1].part.run(source, work_of(plan, tmp_path / "out", Store(tmp_path / "c"), lambda part, text: None))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes", "within", "formats"),
    [
        ("bert", {}, {"embedding.cosine.mean": ">= 0.999"}, ["int4", "int8", "fp16"]),
        ("vit", {"image_size": 8, "num_channels": 1}, {"agreement.class": ">= 0.7"}, ["int4", "int8"]),
        ("resnet", {}, {"agreement.class": ">= 0.9"}, ["int8", "fp16"]),
    ],
)
def test_encoders_and_vision_models_get_a_mix(
    family: str,
    changes: dict[str, Any],
    within: dict[str, str],
    formats: list[str],
    tmp_path: Path,
    corpora: dict[str, Path],
) -> None:
    checkpoint = open_tiny(write_checkpoint(tmp_path / "checkpoint", family, **changes))
    model = load_model(checkpoint, tmp_path / "model")[0]
    text = {"source": "text", "path": str(corpora["calibration"]), "split": "all", "samples": 1, "length": 32}
    source = parse_source(text if family == "bert" else {"source": "digits", "split": "calibration", "samples": 80})
    if family == "bert":
        lines = corpora["calibration"].read_text().splitlines()[:24]
        for i, line in enumerate(lines):
            (tmp_path / "texts").mkdir(exist_ok=True)
            (tmp_path / "texts" / f"{i}.txt").write_text(line)
        source = parse_source({**text, "path": str(tmp_path / "texts" / "*.txt"), "samples": 24})
    work = Work(tmp_path / "out", checkpoint, host(), "onnxruntime", source, tmp_path / "data")
    options = {"format": "auto", "candidates": formats, "within": within}
    made = Quantize.model_validate_json(json.dumps(options))
    spec = read_facts(model).spec
    assert not made.check(View(spec, host(), "onnxruntime", source, ()))
    done = made.run(model, work)
    got = {one["layer"]: one["format"] for one in done.details["mixed"]["choice"]}
    assert set(got.values()) <= set(formats)
    assert {n: q.format for n, q in read_facts(done.artifact).quant.items()} == {
        n: f for n, f in got.items() if f != "fp16"
    }


@pytest.mark.slow
def test_sensitivities_are_those_of_modelopts_auto_quantize(tiny_model: Model, tmp_path: Path) -> None:
    """Its `kl_div` scores are sums over positions of the same divergence, found by running the whole model."""
    import modelopt.torch.quantization as mtq

    module, theirs = open_model(tiny_model), open_model(tiny_model)
    scheme = Scheme("int4", "rtn", block=32)
    made = {
        name: {"int4": QuantLinear.from_parts(plain_parts(module.get_submodule(name), scheme, 4.0))}
        for name, _ in linears(module)
    }
    data = decoder_calibration(torch.randint(3, 256, (4, 48), generator=torch.Generator().manual_seed(0)), 4)
    ours = sensitivities(module, made, data, Journal(tmp_path / "journal", ""), lambda part, text: None)
    weights = {"num_bits": 4, "block_sizes": {-1: 32, "type": "static"}}
    config = {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": weights},
        ],
        "algorithm": "max",
    }
    _, state = mtq.auto_quantize(
        theirs.requires_grad_(True),
        constraints={"effective_bits": 8.0},
        quantization_formats=[config],
        data_loader=list(data.batches),
        forward_step=lambda model, batch: model(*batch)[0],
        num_calib_steps=1,
        num_score_steps=1,
        method="kl_div",
    )
    scores = {name.removesuffix(".quant_recipe"): row["scores"][0] for name, row in state["candidate_stats"].items()}
    assert scores.keys() == ours.keys()
    for name, score in scores.items():
        assert ours[name]["int4"] == pytest.approx(score / data.tokens, rel=2e-3), name


@pytest.mark.slow
def test_time_is_minimised_by_what_a_step_reads(tmp_path: Path, corpora: dict[str, Path]) -> None:
    """A tied head in float takes no bytes of its own, but every step reads it: size leaves it, time quantizes it."""
    checkpoint = open_tiny(write_checkpoint(tmp_path / "checkpoint", "llama", tie_word_embeddings=True))
    model = load_model(checkpoint, tmp_path / "model")[0]
    source = parse_source(
        {"source": "text", "path": str(corpora["calibration"]), "split": "all", "samples": 24, "length": 32}
    )
    card = target_named("l4")
    found = {}
    for aim in ("size", "time"):
        options = {
            "format": "auto",
            "candidates": ["int4", {"format": "int8", "algorithm": "max"}, "fp16"],
            "minimise": aim,
        }
        made = Quantize.model_validate_json(json.dumps({**options, "within": {"kl.mean": "<= 0.05"}}))
        work = Work(tmp_path / aim, checkpoint, card, "tensorrt", source, tmp_path / "data")
        assert not made.check(View(read_facts(model).spec, card, "tensorrt", source, ()))
        found[aim] = made.run(model, work).details["mixed"]
    picks = {aim: {one["layer"]: one["format"] for one in facts["choice"]} for aim, facts in found.items()}
    assert found["time"]["minimise"] == "time"
    assert picks["size"]["head"] == "fp16"
    assert picks["time"]["head"] != "fp16"

    module = open_model(model)

    def seconds(layer: str, label: str) -> float:
        weight = module.get_submodule(layer).weight
        assert isinstance(weight, torch.Tensor)
        bits = {"int4": 4 + 16 / 32, "int8": 8 + 24 / weight.shape[1], "fp16": 16}[label]
        return layer_seconds(card, round(weight.numel() * bits / 8), weight.numel(), "" if label == "fp16" else label)

    losses = {layer: {**row, "fp16": 0.0} for layer, row in found["time"]["sensitivity"].items()}
    taken = next(one for one in found["time"]["rounds"] if one["taken"])
    costs = {layer: {label: seconds(layer, label) for label in row} for layer, row in losses.items()}
    own = sum(costs[layer][label] for layer, label in picks["time"].items())
    assert own == pytest.approx(taken["cost"], rel=1e-3), "counted here from the shapes"
    least = min(
        sum(costs[layer][label] for layer, label in zip(losses, labels, strict=True))
        for labels in itertools.product(*losses.values())
        if sum(losses[layer][label] for layer, label in zip(losses, labels, strict=True)) <= taken["allowance"]
    )
    assert own == pytest.approx(least, rel=1e-3), "no other choice is faster within the same loss"
