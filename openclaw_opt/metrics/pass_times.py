"""Engines of one recipe's passes in turns: every round runs each once, and each round begins with another one.

The ratio of two rows is that of medians over rounds, with a paired block-bootstrap interval; rounds of `latency` itself are not
used, because nothing was beside the engine there but PyTorch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from openclaw_opt.artifacts import GraphFacts, Measurement
from openclaw_opt.metrics.latency import FEWEST_ROUNDS, OVERTIME, Latency, Round, Times, machine_load

if TYPE_CHECKING:
    from openclaw_opt.metrics.subject import Opener

ROUNDS = 30
"""Enough for a narrow interval of a ratio of medians."""
SHARE, LEAST_S = 0.5, 2.0
"""Of the metric's time box; and seconds there are in any case, for several engines want several times as long."""
TOKEN, PREFILL = "speedup.pass", "speedup.pass.prefill"


def box_s(latency: Latency) -> float:
    """Seconds the rounds may take once there are FEWEST_ROUNDS of them; OVERTIME times that ends them in any case."""
    return max(LEAST_S, SHARE * latency.time_box_s)


def time_passes(latency: Latency, engines: Sequence[tuple[Opener, GraphFacts]]) -> tuple[list[Times], str]:
    """Milliseconds of each engine, and the machine's load before. Raises MachineError where one cannot be opened."""
    with ExitStack() as stack:
        runs = [latency.round_of(stack, opener, facts, latency.new_tokens) for opener, facts in engines]
        load = machine_load()
        return rounds_in_turns(runs, box_s(latency), latency.warmup), load


def rounds_in_turns(runs: Sequence[Round], box: float, warmup: int = 1) -> list[Times]:
    """ROUNDS rounds, or what fits into the box."""
    found = [Times() for _ in runs]
    pairs = list(zip(runs, found, strict=True))
    for run, _ in pairs * warmup:
        run()
    began = time.perf_counter()
    while not _enough(len(found[0].first), time.perf_counter() - began, box):
        for run, times in pairs:
            times.add(*run())
        pairs.append(pairs.pop(0))
    return found


def _enough(rounds: int, seconds: float, box: float) -> bool:
    if rounds < FEWEST_ROUNDS:
        return seconds > OVERTIME * box
    return rounds >= ROUNDS or seconds > box


def pass_rows(latency: Latency, times: Times, note: str) -> tuple[Measurement, ...]:
    """The medians of one engine and its throughput, without raw samples."""
    if not times.first:
        return ()
    said = f"batch {latency.batch}; {len(times.first)} rounds in turns, {note}"
    if not times.later:
        rate = latency.rate("throughput.samples_per_s", latency.batch, times.first, "engine", said)
        return (latency.percentile("latency.infer.p50_ms", 50, times.first, "engine", said), rate)
    return (
        latency.percentile("latency.ttft.p50_ms", 50, times.first, "engine", said),
        latency.percentile("latency.decode.p50_ms", 50, times.later, "engine", said),
        latency.rate("throughput.decode_tokens_per_s", latency.batch, times.later, "engine", said),
    )


def speedups(before: Times, after: Times, over: str) -> tuple[Measurement, ...]:
    """How much faster `after` is than `before`; nothing where too few rounds were taken."""
    from openclaw_opt.numerics.stats import paired_ratio

    series = {TOKEN: (before.per_round, after.per_round)}
    if after.later:
        series[PREFILL] = (before.first, after.first)
    found = []
    for name, (slow, fast) in series.items():
        ratio = paired_ratio(slow, fast) if slow else None
        if ratio is not None:
            ends = {"value": ratio.value, "low": ratio.low, "high": ratio.high, "samples": ratio.samples}
            note = f"time with what `{over}` gave / time with what this pass gave, in turns"
            found.append(
                Measurement.model_validate({"name": name, "unit": "×", "better": "higher", "note": note} | ends)
            )
    return tuple(found)
