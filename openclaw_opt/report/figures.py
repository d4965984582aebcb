"""The waterfall's pictures: accuracy, size, latency, time and memory along the passes, as inline SVG.

Each takes the Report and gives a figure, or nothing where it would show nothing. Every number is in a table too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from openclaw_opt.artifacts import Measurement
from openclaw_opt.records import PassRecord, Report
from openclaw_opt.report import numbers, svg, views
from openclaw_opt.report.svg import Figure


def waterfall(report: Report) -> tuple[Figure, ...]:
    """Accuracy, size, time and memory along the passes."""
    found = [_accuracy(report), _sizes(report)] if report.passes else []
    if report.passes:
        found += [_latency(report), _seconds(report.passes), _memory(report.passes)]
    return tuple(figure for figure in found if figure is not None)


def _accuracy(report: Report) -> Figure | None:
    """Steps from the reference down: a bar spans what the pass lost, a whisker its interval; the engine stands last."""
    name, steps = views.accuracy_name(report), views.steps(report)
    final = views.engine_measurement(report, name)
    rows = [*(step.measurement for step in steps), final]
    known = [value for step in steps for value in (step.before, step.after) if value is not None]
    ends = [end for one in rows if one is not None for end in (one.value, one.low, one.high) if end is not None]
    finite = [value for value in (*known, *ends) if math.isfinite(value)]
    if not ends or not finite:
        return None
    scale = svg.Scale(*svg.padded(finite, least=1e-4), 0, svg.WIDTH)
    bottom = (len(steps) + (final is not None)) * svg.ROW
    parts = [svg.x_axis(scale, 0, bottom, [(tick, svg.tick(tick, scale)) for tick in scale.ticks()])]
    parts += [_step(step, i * svg.ROW, scale) for i, step in enumerate(steps)]
    if final is not None:
        parts.append(_engine(final, len(steps) * svg.ROW, scale))
    title = f"{name} after each pass"
    caption = "A bar spans what the pass changed, its whisker is the 95 % interval. Exact passes keep the value: their outputs were compared."
    return Figure(title, svg.drawing(bottom + 22, title, parts), caption)


def _step(step: views.Step, top: float, scale: svg.Scale) -> str:
    one, middle, words = step.measurement, top + 25, _step_text(step)
    parts = [_row_head(top, step.record.word, words)]
    if step.after is None or not math.isfinite(step.after):
        return parts[0]
    if one is None:
        return parts[0] + svg.line(scale(step.after), middle - 5, scale(step.after), middle + 5, "kept")
    before = step.before if step.before is not None and math.isfinite(step.before) else step.after
    left, right = sorted((scale(before), scale(step.after)))
    worse = step.after < before if one.better == "higher" else step.after > before
    parts.append(svg.box(left, middle - 5, max(right - left, 2), 10, "bar loss" if worse else "bar engine", words))
    return "".join([*parts, _interval(one, middle, scale)])


def _engine(one: Measurement, top: float, scale: svg.Scale) -> str:
    """The last row: what the engine itself was measured at."""
    head = _row_head(top, one.subject, numbers.NOT_MEASURED if one.value is None else numbers.measured(one))
    if one.value is None or not math.isfinite(one.value):
        return head
    return (
        head + _interval(one, top + 25, scale) + svg.marker(scale(one.value), top + 25, "engine", numbers.measured(one))
    )


def _row_head(top: float, label: str, words: str) -> str:
    return svg.text(0, top + 13, label, "label halo") + svg.text(svg.WIDTH, top + 13, words, "number halo", "end")


def _interval(one: Measurement, middle: float, scale: svg.Scale) -> str:
    if one.low is None or one.high is None or not math.isfinite(one.high - one.low):
        return ""
    return svg.whisker(scale(one.low), scale(one.high), middle)


def _step_text(step: views.Step) -> str:
    if step.measurement is None:
        return "unchanged" if step.after is not None else numbers.NOT_MEASURED
    return numbers.NOT_MEASURED if step.measurement.value is None else numbers.measured(step.measurement)


def _sizes(report: Report) -> Figure:
    rows = [svg.Bar("checkpoint", numbers.size(report.checkpoint_bytes), float(report.checkpoint_bytes), "reference")]
    rows += [svg.Bar(one.word, numbers.size(one.size_bytes), float(one.size_bytes)) for one in report.passes]
    engine = report.engine_bytes
    if engine is not None and engine != report.passes[-1].size_bytes:
        rows.append(svg.Bar("engine", numbers.size(engine), float(engine)))
    return Figure("Size on disk", svg.bars("Size on disk after each pass", rows), "Weights and graph, counted on disk.")


def _latency(report: Report) -> Figure | None:
    """Only where more than the engine was timed: the engine alone stands in the latency section."""
    timed = [(record.word, views.pass_latency(report, record)) for record in report.passes]
    names = [one.name for _, one in timed if one is not None]
    if not views.passes_timed(report) or not names:
        return None
    rows = [_latency_bar(word, one) for word, one in timed]
    return Figure(f"{names[-1]} after each pass", svg.bars("Latency after each pass", rows))


def _latency_bar(word: str, one: Measurement | None) -> svg.Bar:
    known = one is not None and one.value is not None
    return svg.Bar(
        word, numbers.measured(one) if one is not None and known else numbers.NOT_MEASURED, one.value if one else None
    )


def _seconds(records: Sequence[PassRecord]) -> Figure:
    rows = [svg.Bar(_cached(one), numbers.seconds(one.seconds), one.seconds, _fresh(one)) for one in records]
    return Figure(
        "Time",
        svg.bars("Time of each pass", rows),
        _cache_caption(records, "the time is that of the run that made them"),
    )


def _memory(records: Sequence[PassRecord]) -> Figure:
    rows = [svg.Bar(_cached(one), numbers.size(one.peak_bytes), float(one.peak_bytes), _fresh(one)) for one in records]
    return Figure(
        "Peak memory",
        svg.bars("Peak memory of each pass", rows),
        "Resident memory of the process and its children, sampled.",
    )


def _cached(record: PassRecord) -> str:
    return f"{record.word} (cached)" if record.cached else record.word


def _fresh(record: PassRecord) -> str:
    return "cached" if record.cached else "engine"


def _cache_caption(records: Sequence[PassRecord], why: str) -> str:
    return f"Dashed outline: taken from the cache this time; {why}." if any(one.cached for one in records) else ""
