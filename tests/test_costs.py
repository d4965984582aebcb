"""Cost of a million on each target: measured where it is, a bound that says so where it is not, a reason else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from openclaw_opt.artifacts import GraphFacts, LayerFormat, Measurement
from openclaw_opt.costs import Bounded, costs_of, least_seconds
from openclaw_opt.metrics.roofline import Matrix, Roofline, Work
from openclaw_opt.targets import TARGETS, target_named

FACTS = GraphFacts(task="decoder", dialect="portable", dtype="float16", family="llama", opset=23)
WORK = Work(weight_bytes=3_000_000_000, matrices=(Matrix("a.weight", 1000, 1000),), convolutions=0)
HOST = replace(target_named("h100-sxm"), name="host", title="this machine", hourly_usd=None)


def rate(value: float | None, why: str = "") -> Measurement:
    return Measurement(
        name="throughput.decode_tokens_per_s",
        value=value,
        unit="token/s",
        better="higher",
        not_measured=why,
        note="batch 1; load",
    )


def test_measured_on_the_recipe_s_target() -> None:
    target = replace(HOST, hourly_usd=0.36)
    (own, *others) = costs_of(target, "decoder", [rate(100.0)], {}, priced_by_recipe=True)
    assert own.per_million_usd == pytest.approx(1.0)  # 1e6 tokens / 100 a second = 10,000 s at 0.0001 $ a second
    assert own.basis == "measured on the engine: throughput.decode_tokens_per_s at batch 1"
    assert own.price_source == "the recipe"
    assert others == []


def test_no_price_and_no_throughput_are_said() -> None:
    (own,) = costs_of(HOST, "decoder", [rate(100.0)], {}, priced_by_recipe=False)
    assert own.per_million_usd is None
    assert "no hourly price is known for this machine; `target: {name: host, hourly_usd: …}`" in own.not_measured
    (own,) = costs_of(replace(HOST, hourly_usd=1.0), "decoder", [rate(None, "no GPU here")], {}, priced_by_recipe=True)
    assert own.not_measured == "no GPU here"


def test_other_targets_have_a_bound_that_says_so() -> None:
    bounds = least_seconds(WORK, FACTS, Roofline(batch=1))
    rows = {
        row.target: row
        for row in costs_of(target_named("h100-sxm"), "decoder", [rate(None, "no GPU")], bounds, priced_by_recipe=False)
    }
    assert set(rows) == set(TARGETS)
    h100 = rows["h100-sxm"]
    assert h100.per_million_usd == pytest.approx(1e6 * 2.99 / 3600 * 3e9 / 3350e9)
    assert h100.basis == "bound from the target's figures: batch 1, 192 tokens in the cache"
    assert h100.price_source == "the target's row, on demand"
    assert rows["rtx3060"].not_measured == "no public hourly price of GeForce RTX 3060 12 GB is known"
    wider = least_seconds(WORK, FACTS, Roofline(batch=8))["h100-sxm"].seconds
    assert wider == pytest.approx(3e9 / 3350e9 / 8)


def test_what_does_not_fit_or_run_has_no_bound() -> None:
    fp8 = FACTS.model_copy(update={"quantized": (LayerFormat(name="a", format="fp8"),)})
    assert least_seconds(WORK, fp8, Roofline())["a100-80"].why == "NVIDIA A100 80 GB SXM does not realise fp8"
    huge = replace(WORK, weight_bytes=30_000_000_000)
    found = least_seconds(huge, FACTS, Roofline())
    assert "do not fit into 24 GB" in found["l4"].why
    assert found["l40s"].seconds
    assert least_seconds(None, FACTS, Roofline())["l4"] == Bounded(None, why="there is no graph to count")
    vision = FACTS.model_copy(update={"task": "vision"})
    assert "convolutions" in least_seconds(replace(WORK, convolutions=3), vision, Roofline())["l4"].why
