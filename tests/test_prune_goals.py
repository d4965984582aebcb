"""Prune to a goal and by sensitivity: sizes are those of the graph, goals are met with as little cut as can be, widths that
differ export and reload; narrower hidden states equal the masked ones; the ranks of each importance have closed forms."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from openclaw_opt.backends.engines import open_session
from openclaw_opt.errors import RecipeError, VerificationError
from openclaw_opt.metrics.roofline import Roofline, read_work
from openclaw_opt.models import hidden as hidden_states
from openclaw_opt.models import pruning, sizes
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.export import export_graph
from openclaw_opt.models.families import spec_from_config
from openclaw_opt.models.importance import Importance, activation_scores, next_token_loss, rank, taylor_scores
from openclaw_opt.models.spec import DecoderSpec, LayerSpec, read_facts
from openclaw_opt.models.store import open_model
from openclaw_opt.passes._goal import GIB, Goal
from openclaw_opt.passes._widths import by_sensitivity, even, least, remaining, with_widths
from openclaw_opt.passes.prune import Prune
from openclaw_opt.targets import TARGETS
from tests.test_prune import CPU, LAYER, SPEC, complaints, data, decoder_of, logits, run, silent
from tests.tiny import DECODERS, open_tiny, write_checkpoint

L4 = TARGETS["l4"]


def spec_of(family: str, folder: Path) -> DecoderSpec:
    spec = spec_from_config(open_tiny(write_checkpoint(folder, family)).config)
    assert isinstance(spec, DecoderSpec)
    return spec


# Sizes from the spec alone.


@pytest.mark.parametrize("family", DECODERS)
def test_parameters_are_counted_without_a_model(family: str, tmp_path: Path) -> None:
    spec = spec_of(family, tmp_path)
    with torch.device("meta"):
        decoder = Decoder(spec)
    assert sizes.parameters(spec) == pruning.parameters_of(decoder)
    shapes = {
        name: (layer.out_features, layer.in_features)
        for name, layer in decoder.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    assert sizes.linears(spec) == shapes


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_sizes_and_the_roofline_are_those_of_the_graph(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openclaw_opt.metrics import roofline

    _, done = run(Prune(ffn=0.4), tmp_path, "llama", monkeypatch, hidden_size=256, intermediate_size=512)
    graph = export_graph(done.artifact, tmp_path / "graph", dtype="float16" if backend == "tensorrt" else "float32")
    spec, work = read_facts(done.artifact).decoder, read_work(graph.folder)
    assert spec is not None
    wide = 2 if backend == "tensorrt" else 4
    size = Goal(gib=1.0).measure(spec, L4, backend) * GIB
    assert size == wide * sizes.parameters(spec)
    counted = Goal(decode_ms=1.0)._bytes(spec, wide, tables=False)
    assert counted == pytest.approx(work.weight_bytes, rel=0.01)  # the graph also holds shapes and rotation tables
    context = Roofline().context
    row = Roofline()._bound("roofline.decode_ms", work, graph.facts, L4, (1, context), "")
    assert Goal(decode_ms=1.0).measure(spec, L4, backend) == pytest.approx(row.value, rel=0.01)
    assert roofline.cache_bytes(graph.facts, context) > 0


def test_a_format_shrinks_linear_layers_and_not_the_rest() -> None:
    whole, low = (Goal(gib=1.0, format=fmt).measure(SPEC, L4, "tensorrt") * GIB for fmt in (None, "int8"))
    linears = sum(n * k for name, (n, k) in sizes.linears(SPEC).items() if name != "head")
    assert whole - low == linears


@pytest.mark.parametrize(
    ("given", "limit"),
    [("4.0M", 4e6), ("1.2B", 1.2e9), ("900k", 9e5), (4000000, 4e6), (0.5, 0.5 * 52800), ("0.5", 0.5 * 52800)],
)
def test_counts_and_shares(given: Any, limit: float) -> None:
    spec = DecoderSpec(
        family="llama", vocab=100, hidden=20, head_dim=5, norm_eps=1e-6, activation="silu", attention_scale=1.0, context=8,
        layers=(LayerSpec(q_heads=4, kv_heads=4, ffn=785),),
    )  # fmt: skip
    assert sizes.parameters(spec) == 52760
    assert Goal.model_validate({"parameters": given}).limit(spec) == pytest.approx(limit, rel=1e-3)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "wants one of parameters, gib, decode_ms, infer_ms; got none"),
        ({"parameters": 10, "gib": 1.0}, "wants one of parameters, gib, decode_ms, infer_ms; got parameters, gib"),
        ({"parameters": "4..0M"}, "'4..0M' is no count; write 4000000, 4.0M or 1.2B, or a share like 0.8"),
        ({"parameters": 1.5}, "1.5 is neither a share below 1 nor a whole number of parameters"),
        ({"parameters": 0}, "0 is neither a share below 1"),
        ({"gib": 1.0, "format": "int5"}, "unknown number format 'int5'; did you mean"),
        ({"parameters": 0.5, "format": "int4"}, "format has no effect on a number of parameters"),
        ({"gib": 0.0}, "greater than 0"),
        ({"size": 1.0}, "size"),
    ],
)
def test_goals_that_mean_nothing(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why.replace("(", r"\(").replace("..", r"\.\.")):
        Goal.model_validate(given)


# Widths.


def widths_spec(counts: list[int]) -> DecoderSpec:
    return SPEC.model_copy(update={"layers": tuple(LAYER.model_copy(update={"ffn": count}) for count in counts)})


def under(total: int) -> Any:
    return lambda spec: sum(layer.ffn for layer in spec.layers) <= total


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(40, 200), min_size=1, max_size=4), st.sampled_from([8, 32]), st.floats(0.2, 0.99))
def test_even_widths_meet_the_goal_and_a_smaller_fraction_does_not(
    counts: list[int], multiple: int, share: float
) -> None:
    spec, allowed = widths_spec(counts), int(sum(counts) * share)
    made = even(spec, multiple, under(allowed))
    if made is None:
        assert sum(layer.ffn for layer in least(spec, multiple).layers) > allowed
        return
    assert sum(made) <= allowed
    fractions = [
        f / 1000 for f in range(1000) if sum(remaining(count, f / 1000, multiple) for count in counts) > allowed
    ]
    assert sum(made) >= min(sum(remaining(count, f, multiple) for count in counts) for f in fractions) - sum(
        counts
    ) * 0 - multiple * len(counts)
    assert all(width % multiple == 0 or width == count for width, count in zip(made, counts, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 9))
def test_sensitivity_loses_least_of_all_choices(seed: int, layers: int, taken: int) -> None:
    """Every way to take so many blocks, tried: none loses less."""
    random, multiple, count = np.random.default_rng(seed), 4, 16
    scores = [(random.exponential(size=count) * random.exponential()).tolist() for _ in range(layers)]
    allowed = layers * count - multiple * taken
    made = by_sensitivity(widths_spec([count] * layers), multiple, under(allowed), scores)
    if allowed < layers * multiple:
        assert made is None
        return
    assert made is not None
    assert sum(made) == allowed

    def loss(widths: Any) -> float:
        return sum(sum(sorted(values)[: count - width]) for values, width in zip(scores, widths, strict=True))

    choices = itertools.product(range(multiple, count + 1, multiple), repeat=layers)
    assert loss(made) <= min(loss(one) for one in choices if sum(one) == allowed) + 1e-9


def test_a_width_that_is_no_multiple_is_cut_to_one_first() -> None:
    assert by_sensitivity(widths_spec([100]), 32, under(99), [[1.0] * 100]) == [96]
    assert by_sensitivity(widths_spec([100]), 32, under(31), [[1.0] * 100]) is None
    assert even(widths_spec([100]), 32, under(99)) == [96]


# The pass.


@pytest.mark.parametrize("allocation", ["even", "sensitivity"])
@pytest.mark.parametrize("goal", [{"parameters": 0.85}, {"parameters": "160k"}, {"gib": 0.0006}])
def test_goals_are_met_and_differing_widths_reload_and_run(
    goal: dict[str, Any], allocation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Goal.model_validate(goal)
    prune = Prune(to=wanted, allocation=allocation, round_to=8)
    model, done = run(prune, tmp_path, "llama", monkeypatch, intermediate_size=256, num_hidden_layers=3)
    before, after = read_facts(model).decoder, read_facts(done.artifact).decoder
    assert before is not None
    assert after is not None
    limit = wanted.limit(before)
    assert wanted.measure(after, CPU, "onnxruntime") <= limit
    one_more = with_widths(after, [layer.ffn + 8 for layer in after.layers])
    assert wanted.measure(one_more, CPU, "onnxruntime") > limit
    assert done.details["goal"] == {
        "asked": wanted.told(limit),
        "reached": wanted.told(wanted.measure(after, CPU, "onnxruntime")),
    }
    widths = [layer.ffn for layer in after.layers]
    assert (len(set(widths)) > 1) == (allocation == "sensitivity")
    assert done.details["proof"]["largest_difference"] < 1e-5
    pruned = open_model(done.artifact)  # again from disk
    assert isinstance(pruned, Decoder)
    assert [layer.down.in_features for layer in pruned.layers] == widths
    graph = export_graph(done.artifact, tmp_path / "graph", dtype="float32")
    ids = np.arange(3, 27, dtype=np.int64)[None]
    with open_session(done.artifact) as ours, open_session(graph) as theirs:
        expected, made = ours.logits(ids), theirs.logits(ids)  # type: ignore[union-attr]
    assert np.abs(expected - made).max() < 1e-4 * np.abs(expected).max()


def test_uneven_cuts_as_many_channels_as_even(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {}
    for allocation in ("even", "sensitivity"):
        _, done = run(Prune(ffn=0.5, allocation=allocation, round_to=8), tmp_path / allocation, "llama", monkeypatch)  # type: ignore[arg-type]
        counts[allocation] = done.count
    assert counts["even"] == counts["sensitivity"]


def test_a_goal_in_time_is_met_on_its_target() -> None:
    wanted = Goal(decode_ms=1e-5)
    ((what, option, _),) = complaints(Prune(to=wanted), SPEC, L4, backend="tensorrt")
    closest = Goal(decode_ms=1.0).measure(least(SPEC, 64), L4, "tensorrt")
    assert (
        what == f"1e-05 ms a token cannot be reached by FFN channels alone: the narrowest has {closest:.4g} ms a token"
    )
    assert option == "to"
    now = Goal(decode_ms=1.0).measure(SPEC, L4, "tensorrt")
    assert complaints(Prune(to=Goal(decode_ms=(now + closest) / 2), round_to=8), SPEC, L4, backend="tensorrt") == []


TOTAL = sizes.parameters(SPEC)
HALF = sizes.parameters(SPEC.model_copy(update={"hidden": 32}))
CUT = f"the other cuts alone fit already: {HALF:,} parameters, and {0.9 * TOTAL:,.0f} parameters are allowed"
FITS = f"the model fits already: {TOTAL:,} parameters, and 1,000,000,000 parameters are allowed"
FAR = f"{0.1 * TOTAL:,.0f} parameters cannot be reached by FFN channels alone: the narrowest has {sizes.parameters(least(SPEC, 32)):,} parameters"
UNKNOWN = "bandwidth and peak rate of a CPU are not known before they are measured"
OTHER = "to: {parameters: …} or {gib: …}, or another target"
BLIND = ("ranking needs calibration data", "importance", "add `calibration` to `data`, or importance: magnitude")


@pytest.mark.parametrize(
    ("options", "changes", "wanted"),
    [
        ({"to": Goal(parameters=0.9)}, {}, []),
        ({"to": Goal(parameters=0.9), "ffn": 0.4}, {}, [("`to` finds the FFN's width itself", "ffn", "leave ffn or to out")]),
        ({"to": Goal(parameters=1e9)}, {}, [(FITS, "to", "ask for less, or leave `to` out")]),
        ({"to": Goal(parameters=0.1)}, {}, [(FAR, "to", "ask for more, or take out layers, heads or hidden channels as well")]),
        ({"to": Goal(decode_ms=1.0)}, {"target": replace(CPU, bandwidth=None, peak={})}, [(UNKNOWN, "to", OTHER)]),
        ({"to": Goal(parameters=0.9), "hidden": 0.5}, {}, [(CUT, "to", "ask for less, or leave `to` out")]),
        ({"layers": 1, "allocation": "even"}, {}, [("allocation has no effect without ffn or to", "allocation", "leave it out")]),
        ({"hidden": 0.2}, {}, [("hidden: 0.2 of 64 hidden channels removes nothing at multiples of 32", "hidden", "hidden: 0.5")]),
        ({"hidden": 0.5}, {}, []),
        ({"hidden": 0.5, "importance": "magnitude"}, {"calibration": None}, []),
        ({"hidden": 0.5}, {"calibration": None}, [BLIND]),
        ({"ffn": 0.4, "importance": "taylor"}, {"calibration": None}, [BLIND]),
    ],
)  # fmt: skip
def test_each_complaint(options: dict[str, Any], changes: dict[str, Any], wanted: list[Any]) -> None:
    assert complaints(Prune(**options), SPEC, **{"target": CPU, **changes}) == wanted


def test_layer_norms_are_refused_for_hidden(tmp_path: Path) -> None:
    ((what, option, _),) = complaints(Prune(hidden=0.5), spec_of("gpt2", tmp_path))
    assert (what, option) == ("gpt2 has layer norms, whose mean over all channels no smaller norm gives back", "hidden")


def test_what_only_run_can_see_is_refused_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"prune\.to: .* cannot be reached by FFN channels alone"):
        run(Prune(to=Goal(parameters=0.05)), tmp_path, "llama", monkeypatch)


# Importance.


def loss_with(decoder: Decoder, module: torch.nn.Linear, columns: list[int], factor: float) -> float:
    kept = module.weight.clone()
    module.weight[:, columns] *= factor
    with torch.no_grad():
        total = sum(float(next_token_loss(decoder(*batch)[0], batch[0])) for batch in data().batches[:1])
    module.weight.copy_(kept)
    return total


def test_taylor_is_the_squared_derivative_by_a_factor_on_the_channel() -> None:
    decoder = decoder_of((LAYER, LAYER)).double()
    calibration = replace(data(), batches=data().batches[:1])
    scores = taylor_scores(decoder, calibration, silent)
    step = 1e-2  # logits are float32
    for at in (0, 1):
        column = int(scores[at].ffn.argmax())  # where the slope is far above the rounding of the loss
        down = decoder.layers[at].down
        slope = (loss_with(decoder, down, [column], 1 + step) - loss_with(decoder, down, [column], 1 - step)) / (
            2 * step
        )
        assert float(scores[at].ffn[column]) == pytest.approx(slope**2, rel=0.005)
    head = list(range(16, 32))
    o = decoder.layers[0].o
    slope = (loss_with(decoder, o, head, 1 + step) - loss_with(decoder, o, head, 1 - step)) / (2 * step)
    assert float(scores[0].heads[1]) == pytest.approx(slope**2, rel=0.02)
    assert all(not value.requires_grad for value in decoder.parameters())


def test_wanda_adds_weights_times_norms_and_activation_their_energy() -> None:
    decoder = decoder_of((LAYER,))
    inputs: list[torch.Tensor] = []
    handle = decoder.layers[0].down.register_forward_pre_hook(lambda module, x: inputs.append(x[0].flatten(0, 1)))
    wanda, energy = (activation_scores(decoder, data(), silent, wanda=one) for one in (True, False))
    handle.remove()
    x, weight = torch.cat(inputs[: len(data().batches)]).double(), decoder.layers[0].down.weight.double()
    assert torch.allclose(wanda[0].ffn, (weight.abs() * x.norm(dim=0)).sum(0))
    assert torch.allclose(energy[0].ffn, x.square().sum(0) * weight.square().sum(0))
    assert wanda[0].scale == pytest.approx(float(wanda[0].ffn.sum()))


@pytest.mark.parametrize("importance", ["magnitude", "activation", "wanda", "taylor"])
def test_channels_that_add_nothing_go_first_by_every_rank(importance: Importance) -> None:
    decoder = decoder_of((LAYER, LAYER))
    dead = list(range(0, 96, 3))
    for layer in decoder.layers:
        layer.down.weight[:, dead] = 0
        wide = layer.gate_up.weight
        wide[dead], wide[[96 + j for j in dead]] = 0, 0
    for scores in rank(decoder, importance, data(), silent):
        assert sorted(scores.ffn.argsort()[: len(dead)].tolist()) == dead


def test_the_layer_that_adds_little_to_a_large_stream_is_cut_most(tmp_path: Path) -> None:
    """What one layer adds counts by the hidden states it adds it to."""
    decoder = decoder_of((LAYER, LAYER))
    decoder.layers[1].down.weight *= 1e-2
    plan = pruning.Plan(
        0, lambda sizes: sizes, "activation", True,
        lambda spec, scores: by_sensitivity(spec, 8, under(128), [(one.ffn / one.scale).tolist() for one in scores]) or [],
    )  # fmt: skip
    made = pruning.prune_model(decoder, plan, data(), silent)
    first, second = (layer.ffn for layer in made.model.spec.layers)
    assert first + second == 128
    assert second < first


# Hidden width.


@pytest.mark.parametrize("family", [name for name in DECODERS if name != "gpt2"])
def test_narrower_hidden_states_equal_the_masked_ones(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, done = run(Prune(hidden=0.25, ffn=0.4, round_to=16), tmp_path, family, monkeypatch)
    after = read_facts(done.artifact).decoder
    assert after is not None
    assert after.hidden == 48
    assert done.details["hidden"] == [64, 48]
    assert 0.5 < done.details["hidden_importance_kept"] < 1
    assert done.details["proof"]["largest_difference"] < 1e-4
    assert "hidden channels 64 → 48" in done.changed
    pruned = open_model(done.artifact)
    assert isinstance(pruned, Decoder)
    assert pruning.parameters_of(pruned) == sizes.parameters(after) == done.details["parameters"]
    graph = export_graph(done.artifact, tmp_path / "graph", dtype="float32")
    ids = np.arange(3, 27, dtype=np.int64)[None]
    with open_session(done.artifact) as ours, open_session(graph) as theirs:
        expected, made = ours.logits(ids), theirs.logits(ids)  # type: ignore[union-attr]
    assert np.abs(expected - made).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("importance", ["magnitude", "activation"])
def test_channels_that_hold_nothing_go_and_the_output_stays(importance: Importance) -> None:
    decoder = decoder_of((LAYER, LAYER))
    dead = list(range(0, 64, 2))
    decoder.embed.weight[:, dead] = 0
    decoder.head.weight[:, dead] = 0
    for layer in decoder.layers:
        layer.o.weight[dead], layer.down.weight[dead] = 0, 0
        layer.qkv.weight[:, dead], layer.gate_up.weight[:, dead] = 0, 0
    before = logits(decoder)
    plan = pruning.Plan(0, lambda sizes: sizes, importance, False, hidden=32)
    made = pruning.prune_model(decoder, plan, data(), silent)
    assert made.hidden is not None
    assert made.hidden.tolist() == list(range(1, 64, 2))
    assert torch.allclose(logits(made.model), before, atol=1e-5 * float(before.abs().max()))


def test_norms_left_as_they_were_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the factor on the norms' weights, what Minitron leaves to training, the two are not equal."""
    decoder = decoder_of((LAYER, LAYER))
    plan = pruning.Plan(0, lambda sizes: sizes, "activation", False, hidden=32)
    monkeypatch.setattr(hidden_states, "sqrt", lambda _: 1.0)
    made = pruning.prune_model(decoder, plan, data(), silent)
    with pytest.raises(VerificationError, match="shrunk model differs from the masked one"):
        pruning.prove(decoder, made.model, made.cuts, data(), made.hidden)


@pytest.mark.slow  # the real builder compiles two profiles
def test_layers_of_different_widths_and_zeros_become_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    from openclaw_opt.backends.tensorrt import TensorrtOptions, build
    from openclaw_opt.backends.trt_profiles import Profiles
    from openclaw_opt.graph.to_tensorrt import lower
    from openclaw_opt.passes import Work
    from openclaw_opt.passes.sparsify import Sparsify

    prune = Prune(to=Goal(parameters=0.6), allocation="sensitivity", hidden=0.25, round_to=16)
    _, done = run(prune, tmp_path, "llama", monkeypatch, intermediate_size=256)
    work = Work(tmp_path / "sparse", open_tiny(tmp_path / "checkpoint"), CPU, "tensorrt", None, tmp_path / "cache")
    sparse = Sparsify(pattern="2:4", method="magnitude").run(done.artifact, work).artifact
    graph = lower(export_graph(sparse, tmp_path / "portable", dtype="float16"), tmp_path / "lowered")
    options = TensorrtOptions(profiles=Profiles(batch=(1, 1, 2), prompt=(1, 8, 16)))
    facts = build(graph, L4, options, tmp_path / "engine", lambda phase, part: None).facts
    widths = [layer.ffn for layer in read_facts(sparse).decoder.layers]  # type: ignore[union-attr]
    assert len(set(widths)) > 1
    assert [row.profile for row in facts.kernels] == ["prefill", "decode"]
    assert facts.notes[0].startswith("2:4 zeros: not used by tensorrt-rtx")
    assert (tmp_path / "engine" / facts.files[0]).stat().st_size > 0
