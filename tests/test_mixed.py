"""`quantize: {format: auto}`: an exact choice, a measured correction, an honest count of bytes, and no look at evaluation data."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openclaw_opt.errors import BudgetMissed, RecipeError
from openclaw_opt.graph import to_onnxruntime, to_tensorrt
from openclaw_opt.models.calibrate import decoder_calibration
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.export import export_graph
from openclaw_opt.models.footprint import weight_bytes
from openclaw_opt.models.linear import QuantLinear
from openclaw_opt.models.load import load_model
from openclaw_opt.models.sensitivity import Journal, mixed_loss, sensitivities
from openclaw_opt.models.spec import read_facts
from openclaw_opt.models.store import open_model
from openclaw_opt.numerics.correction import best, closest, correct
from openclaw_opt.numerics.knapsack import SLACK, Choice, choose
from openclaw_opt.plan import check_recipe, make_plan
from openclaw_opt.recipe import load_recipe, resolved_yaml
from openclaw_opt.store import Store

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
def test_the_choice_is_the_cheapest_there_is(problem: tuple[list[dict[str, float]], list[dict[str, float]], float]) -> None:
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
    assert found.loss == pytest.approx(min(loss for cost, loss in within if cost == least), abs=1e-6), "ties go to less loss"
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
        ("quantize: {format: auto, candidates: [int4, fp16]}", 'format: auto wants what the choice must keep\n  fix: within: {bits_per_byte.recovery: ">= 0.99"}'),
        ('quantize: {format: int4, within: {kl.mean: "<= 1"}}', "within has no effect with format: int4\n  fix: format: auto"),
        ("quantize: {format: int4, candidates: [int4, fp16]}", "candidates has no effect with format: int4"),
        ("quantize: {format: int4, minimise: time}", "minimise has no effect with format: int4"),
        ('quantize: {format: auto, within: {kl.mean: "<= 1"}}', "chooses among two candidates or more; there is none"),
        ('quantize: {format: auto, candidates: [int4], within: {kl.mean: "<= 1"}}', "there is int4\n  fix: format: int4"),
        ('quantize: {format: auto, candidates: [int4, int4], within: {kl.mean: "<= 1"}}', "candidate int4 (gptq, blocks of 32) is there twice"),
        ('quantize: {format: auto, candidates: [int4, {format: int4, block: 32}], within: {kl.mean: "<= 1"}}', "is there twice"),
        ('quantize: {format: auto, candidates: [fp16, fp16], within: {kl.mean: "<= 1"}}', "candidate fp16 is there twice"),
        ('quantize: {format: auto, candidates: [int4, itn8], within: {kl.mean: "<= 1"}}', "'itn8' is no format\n  fix: did you mean 'int8'?"),
        ('quantize: {format: auto, candidates: [int4, {format: int8, bloc: 4}], within: {kl.mean: "<= 1"}}', "unknown key 'bloc' of int8\n  fix: did you mean 'block'?"),
        ('quantize: {format: auto, candidates: [int4, {format: int8, alpha: 2}], within: {kl.mean: "<= 1"}}', "int8: alpha: input should be less than or equal to 1; got 2"),
        ('quantize: {format: auto, candidates: [int4, mxfp8], within: {kl.mean: "<= 1"}}', "mxfp8 is not realised"),
        ('quantize: {format: auto, candidates: [int4, fp8], within: {kl.mean: "<= 1"}}', "candidate fp8: onnxruntime does not realise fp8"),
        ('quantize: {format: auto, candidates: [int4, {format: fp16, block: 4}], within: {kl.mean: "<= 1"}}', "fp16 has no options"),
        ('quantize: {format: auto, candidates: [int8, fp16], block: 32, within: {kl.mean: "<= 1"}}', "block has no effect with int8"),
        ('quantize: {format: auto, candidates: [int4, fp16], within: {kl.maen: "<= 1"}}', "'kl.maen' is no measurement of a decoder\n  fix: did you mean 'kl.mean'?"),
        ('quantize: {format: auto, candidates: [int4, fp16], within: {latency.decode.p50_ms: "<= 1"}}', "'latency.decode.p50_ms' is not measured of calibration data of a decoder"),
        ('quantize: {format: auto, candidates: [int4, fp16], within: {accuracy.top1: ">= 1"}}', "'accuracy.top1' is not measured of calibration data of a decoder"),
        ('quantize: {format: auto, candidates: [int4, fp16], within: {kl.mean: "<= 1 %"}}', "a rule is a comparison with a number; got '<= 1 %'"),
        ('quantize: {format: auto, candidates: [int4, fp16], within: {kl.mean: ">= 1"}}', "kl.mean is better lower: kl.mean >= 1 asks for a loss"),
        ('quantize: {format: auto, candidates: [int4, fp16], within: {kl.mean: {rul: "<= 1"}}}', "unknown key 'rul'\n  fix: did you mean 'rule'?"),
        ('quantize: {format: auto, candidates: [int4, fp16], within: {kl.mean: "<= 1"}, keep: [laters.*]}', "keep: 'laters.*' matches no layer"),
        ('quantize: {format: auto, candidates: [int4, fp16], within: {kl.mean: "<= 1"}, held_back: 0.05}', "are held back to measure the choice on, and it takes 8"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_any_work(write_recipe: Callable[..., Path], passes: str, said: str) -> None:
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
