"""Pictures of the engine: accuracy against latency, the distribution of every latency sample, the worst layers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from openclaw_opt.artifacts import Measurement
from openclaw_opt.records import Report
from openclaw_opt.report import numbers, svg, tables, views
from openclaw_opt.report.svg import Figure

CURVE_POINTS = 160
"""Points of one ECDF; finer than the drawing's resolution at that width."""
WORST_LAYERS = 12
LOG_FROM = 20
"""A ratio of largest to smallest latency from which the axis is logarithmic."""
LINE_STYLES = ("engine", "reference", "third", "fourth")


def tradeoff(report: Report) -> Figure | None:
    """Accuracy against latency, reference to engine, each with its 95 % interval."""
    points = views.points(report)
    if not points:
        return None
    left, right, top, bottom = 58.0, svg.WIDTH - 14.0, 14.0, 230.0
    x = svg.Scale(*_latency_range(points), left, right, _wide(points))
    y = svg.Scale(*svg.padded(_ends([one.accuracy for one in points]), 0.2, 1e-4), bottom, top)
    y_labels = [(tick, svg.tick(tick, y)) for tick in y.ticks(5)]
    x_labels = [(tick, numbers.milliseconds(tick)) for tick in x.ticks(4)]
    heights = svg.spread([y(_value(one.accuracy)) for one in points], 15)
    parts = [svg.y_axis(y, left, right, y_labels), svg.x_axis(x, top, bottom, x_labels)]
    parts += [_point(one, x, y, label_y) for one, label_y in zip(points, heights, strict=True)]
    parts.append(
        svg.text(
            (left + right) / 2,
            bottom + 34,
            f"{points[-1].latency.name} ({_less(points[-1].latency)})",
            "axis",
            "middle",
        )
    )
    score = points[-1].accuracy
    caption = f"Upright: {score.name}, {score.better} is better. Bars are 95 % intervals. " + _subjects(points)
    return Figure("Accuracy against latency", svg.drawing(bottom + 42, "Accuracy against latency", parts), caption)


def _point(one: views.Point, x: svg.Scale, y: svg.Scale, label_y: float) -> str:
    across, up = x(_value(one.latency)), y(_value(one.accuracy))
    parts = []
    if one.latency.low is not None and one.latency.high is not None:
        parts.append(svg.whisker(x(one.latency.low), x(one.latency.high), up))
    if one.accuracy.low is not None and one.accuracy.high is not None:
        parts.append(svg.whisker(y(one.accuracy.low), y(one.accuracy.high), across, upright=True))
    hover = f"{one.label}: {numbers.measured(one.accuracy)}, {numbers.measured(one.latency)}"
    on_left = across > svg.WIDTH * 0.62
    label = svg.text(
        across - 13 if on_left else across + 13, label_y - 6, one.label, "label halo", "end" if on_left else "start"
    )
    return "".join([*parts, svg.marker(across, up, one.kind, hover), label])


def _subjects(points: Sequence[views.Point]) -> str:
    return f"Accuracy measured on: {points[-1].accuracy.subject}. Latency measured on: {points[-1].latency.subject}."


def _less(one: Measurement) -> str:
    return f"{one.better} is better" if one.better != "neither" else one.unit


def _value(one: Measurement) -> float:
    assert one.value is not None, "points hold measured numbers only"
    return one.value


def _ends(rows: Sequence[Measurement]) -> list[float]:
    return [end for one in rows for end in (one.value, one.low, one.high) if end is not None and math.isfinite(end)]


def _wide(points: Sequence[views.Point]) -> bool:
    ends = _ends([one.latency for one in points])
    return min(ends) > 0 and max(ends) / min(ends) >= LOG_FROM


def _latency_range(points: Sequence[views.Point]) -> tuple[float, float]:
    ends = _ends([one.latency for one in points])
    return (min(ends) / 1.5, max(ends) * 1.5) if _wide(points) else (min(0.0, *ends), max(ends) * 1.12 or 1.0)


def latency_curves(report: Report) -> tuple[Figure, ...]:
    """The share of samples at or under each latency, one picture a stage, one line a subject."""
    stages: dict[str, list[views.Series]] = {}
    for one in views.series(report):
        stages.setdefault(one.stage, []).append(one)
    return tuple(_ecdf(stage, rows) for stage, rows in stages.items())


def _ecdf(stage: str, rows: Sequence[views.Series]) -> Figure:
    low, high = min(min(one.samples) for one in rows), max(max(one.samples) for one in rows)
    left, right, top, bottom = 46.0, svg.WIDTH - 14.0, 10.0, 210.0
    log = low > 0 and high / low >= LOG_FROM
    x = (
        svg.Scale(low / 1.1, high * 1.1, left, right, True)
        if log
        else svg.Scale(*svg.padded([low, high], 0.04), left, right)
    )
    y = svg.Scale(0, 1, bottom, top)
    marks = [(share, f"{share:.0%}") for share in (0.5, 0.9, 0.99)]
    parts = [
        svg.y_axis(y, left, right, [(0, "0%"), *marks]),
        svg.x_axis(x, top, bottom, [(t, numbers.milliseconds(t)) for t in x.ticks(4)]),
    ]
    parts += [svg.polyline(_curve(one, x, y), style) for one, style in zip(rows, _styles(rows), strict=True)]
    legend_top = bottom + 30
    for i, (one, style) in enumerate(zip(rows, _styles(rows), strict=True)):
        parts.append(svg.polyline([(left, legend_top + 18 * i), (left + 28, legend_top + 18 * i)], style))
        parts.append(svg.text(left + 36, legend_top + 18 * i + 4, f"{one.subject}, n = {len(one.samples):,}", "label"))
    height = legend_top + 18 * len(rows)
    caption = "Share of samples at or under a latency: the further left the faster, the steeper the steadier." + (
        " Logarithmic." if log else ""
    )
    return Figure(f"{stage}: every sample", svg.drawing(height, f"Distribution of {stage}", parts), caption)


def _styles(rows: Sequence[views.Series]) -> list[str]:
    others = iter(LINE_STYLES[2:] * len(rows))
    return [one.subject if one.subject in LINE_STYLES[:2] else next(others) for one in rows]


def _curve(one: views.Series, x: svg.Scale, y: svg.Scale) -> list[tuple[float, float]]:
    """A staircase of at most CURVE_POINTS steps, the slowest samples kept."""
    ordered = sorted(one.samples)
    total = len(ordered)
    ranks = (
        range(total)
        if total <= CURVE_POINTS
        else sorted({*(i * (total - 1) // (CURVE_POINTS - 1) for i in range(CURVE_POINTS)), *range(total - 8, total)})
    )
    points, height = [(x(ordered[0]), y(0))], y(0)
    for rank in ranks:
        points.append((x(ordered[rank]), height))
        height = y((rank + 1) / total)
        points.append((x(ordered[rank]), height))
    return points


def layers(report: Report) -> tuple[Figure, ...]:
    """The worst layers, and the worst of each kind of layer: a longer bar is a larger error."""
    ranked = [
        (layer.name, error)
        for _, layer in tables.worst_layers(report)
        if (error := _known(tables.layer_error(layer))) is not None
    ]
    if not ranked:
        return ()
    kinds: dict[str, list[tuple[str, float]]] = {}
    for name, error in ranked:
        kinds.setdefault(re.sub(r"\d+", "*", name), []).append((name, error))
    worst = [_layer_bar(name, error) for name, error in ranked[:WORST_LAYERS]]
    by_kind = [_layer_bar(f"{kind}, worst of {len(rows)}", rows[0][1]) for kind, rows in kinds.items() if len(rows) > 1]
    caption = "Bar: error relative to signal, 10^(-SQNR/20). Number: signal to quantization noise in dB, where lower is worse."
    found = [
        Figure(
            f"Worst {len(worst)} of {len(ranked):,} layers", svg.bars("Layers with the largest error", worst), caption
        )
    ]
    if by_kind:
        found.append(Figure("Worst of each kind", svg.bars("The worst layer of each kind", by_kind[:WORST_LAYERS])))
    return tuple(found)


def _layer_bar(label: str, error: float) -> svg.Bar:
    return svg.Bar(label, f"{error:.1f} dB", 10 ** (-error / 20), "loss")


def _known(error: float | None) -> float | None:
    return error if error is not None and math.isfinite(error) else None
