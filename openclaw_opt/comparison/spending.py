"""Which pass spent a budget, and which of its layers.

Pass: the one after which the number fell most, beginning at what the checkpoint has by that name. Of times, the one whose engine
is slower than the one before, in turns and beyond the interval.
Layers: those with the most noise. A layer's noise is its parameters · 10^(−SQNR/10), the SQNR of its output on calibration
data, or of its weight where the output was not looked at: the share of the signal that is noise, by how much of the model it
is. It is a ranking by what was measured, not a proof: sensitivity to noise differs by layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from openclaw_opt.artifacts import Measurement
from openclaw_opt.comparison.rows import reference_row
from openclaw_opt.records import LayerRecord, PassRecord

MOST = 3
"""Layers that are named."""
PERFECT = {"recovery": 1.0, "agreement": 1.0, "cosine": 1.0, "retrieval": 1.0, "kl": 0.0}
"""What the checkpoint has against itself, by a word of the metric's name."""
TIMES = ("latency", "throughput", "speedup")
"""First words of numbers that a pass spends by making the engine slower than the one before it."""


def spender(metric: str, records: Sequence[PassRecord], measurements: Sequence[Measurement] = ()) -> str:
    """The pass after which the metric fell most; empty where it was not measured pass by pass or nothing fell."""
    if metric.split(".")[0] in TIMES:
        return _slowest(metric, records)
    steps = [(r.word, m) for r in records for m in r.accuracy if m.name == metric and m.value is not None]
    if not steps:
        return ""
    losses, before = [], _start(metric, measurements, steps[0][1])
    for word, measured in steps:
        value = measured.value or 0.0
        losses.append((before - value if measured.better == "higher" else value - before, word))
        before = value
    loss, word = max(losses, key=lambda one: one[0])
    return word if loss > 0 else ""


def _slowest(metric: str, records: Sequence[PassRecord]) -> str:
    """The pass that made the engine slower beyond the interval, the most of them; most passes make it faster."""
    prefill = any(word in metric.split(".") for word in ("ttft", "prefill", "prefill_tokens_per_s"))
    name = "speedup.pass.prefill" if prefill else "speedup.pass"
    found = [
        (row.value, r.word)
        for r in records
        for row in r.speedups
        if row.name == name and row.value is not None and row.high is not None and row.high < 1
    ]
    return min(found)[1] if found else ""


def _start(metric: str, measurements: Sequence[Measurement], first: Measurement) -> float:
    own = reference_row(measurements, metric)
    if own is not None and own.value is not None:
        return own.value
    words = metric.split(".")
    return next((value for word, value in PERFECT.items() if word in words), first.value or 0.0)


def layers_of(word: str, records: Sequence[PassRecord]) -> tuple[str, ...]:
    """Names of the layers of that pass with the most noise, worst first."""
    record = next((r for r in records if r.word == word and r.layers), None)
    if record is None:
        return ()
    noisy = sorted(
        ((noise, layer.name) for layer in record.layers if (noise := noise_of(layer))), key=lambda one: -one[0]
    )
    return tuple(name for _, name in noisy[:MOST])


def noise_of(layer: LayerRecord) -> float:
    """What `layers_of` ranks by; 0 where the layer's error is not known."""
    sqnr = layer.output_sqnr_db if layer.output_sqnr_db is not None else layer.weight_sqnr_db
    return 0.0 if sqnr is None else layer.parameters * 10 ** (-sqnr / 10)
