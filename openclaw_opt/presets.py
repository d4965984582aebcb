"""Budgets by name: a row each. `budgets: {preset: mlperf-99}` stands for the rules of the row that the recipe's metrics measure.

Latency figures are those of MLPerf Inference (datacenter), p99, in milliseconds. Ours are held to more: MLPerf's time per
output token is the mean of a request, ours each token's own time. Accuracy is the share of the reference's own metric.
"""

from __future__ import annotations

from dataclasses import dataclass

from openclaw_opt.errors import RecipeError, nearest

SOURCE = "https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc"
RECOVERIES = ("bits_per_byte.recovery", "accuracy.top1.recovery", "embedding.cosine.mean")
"""The share of the reference that is kept, by task: decoder, vision, encoder (of which it has no other metric)."""


@dataclass(frozen=True)
class Preset:
    """One row: measurement name to rule."""

    name: str
    title: str
    rules: dict[str, str]
    source: str


def _accuracy(name: str, share: str) -> Preset:
    rules = {metric: f">= {share}" for metric in RECOVERIES}
    return Preset(name, f"at least {float(share) * 100:g} % of the reference's accuracy", rules, SOURCE)


def _latency(name: str, ttft: int, token: int) -> Preset:
    rules = {"latency.ttft.p99_ms": f"<= {ttft}", "latency.decode.p99_ms": f"<= {token}"}
    return Preset(f"mlperf/{name}", f"p99 of the first token {ttft} ms, of each other {token} ms", rules, SOURCE)


_ROWS = (
    _accuracy("mlperf-99", "0.99"),
    _accuracy("mlperf-99.9", "0.999"),
    _latency("llama3.1-8b/server", 2000, 100),
    _latency("llama3.1-8b/interactive", 500, 30),
    _latency("llama2-70b/server", 2000, 200),
    _latency("llama2-70b/interactive", 450, 40),
    _latency("llama3.1-405b/server", 6000, 175),
    _latency("llama3.1-405b/interactive", 4500, 80),
    _latency("mixtral-8x7b/server", 2000, 200),
    _latency("deepseek-r1/server", 2000, 80),
    _latency("deepseek-r1/interactive", 1500, 15),
    _latency("gpt-oss-120b/server", 3000, 80),
    _latency("gpt-oss-120b/interactive", 2000, 20),
)

PRESETS: dict[str, Preset] = {row.name: row for row in _ROWS}


def preset_named(name: str) -> Preset:
    """The row of that name. Raises RecipeError with the nearest word."""
    if name not in PRESETS:
        raise RecipeError(f"unknown preset {name!r}", fix=nearest(name, PRESETS))
    return PRESETS[name]
