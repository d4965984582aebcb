"""Earlier builds of a history beside this one: a table, the trend of accuracy and latency, and what was left out and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from openclaw_opt.artifacts import Measurement
from openclaw_opt.records import EarlierBuild, HistoryRecord, LeftOut, Report
from openclaw_opt.report import numbers, plot, tables, views
from openclaw_opt.report.plot import Figure, Spec
from openclaw_opt.report.tables import NONE, Cell, Column, Table

THIS = "this build"
TREND_HEIGHT = 90
MARKS = {"within budget": "good", "budget missed": "bad", "undecided": "open", "not finished": "open"}


def shown_names(report: Report) -> tuple[str, ...]:
    """The accuracy and the latency of the pictures; a latency even where nothing is beside it in this build."""
    names = (views.accuracy_name(report), views.latency_name(report))
    return tuple(name for name in names if name)


def earlier_table(report: Report) -> Table:
    """A row a build, the newest first and this one on top: its accuracy, latency and size where they may be compared."""
    if report.history is None or not report.history.builds:
        return Table((), ())
    names = [*shown_names(report), "size_mib"]
    columns = (Column("Build"), Column("Recipe"), Column("Verdict"), *(Column(name, numeric=True) for name in names))
    own = [views.engine_measurement(report, name) for name in names]
    first = (
        Cell(THIS),
        Cell(report.name),
        Cell(report.verdict, mark=MARKS.get(report.verdict, "")),
        *map(_number, own),
    )
    rows = [_row(i, one, names) for i, one in enumerate(report.history.builds, 1)]
    return Table(columns, (first, *reversed(rows)))


def _row(number: int, one: EarlierBuild, names: Sequence[str]) -> tuple[Cell, ...]:
    cells = (_number(views.of_build(one, name)) for name in names)
    return (
        Cell(f"{number} {build_label(one)}", float(number)),
        Cell(one.name),
        Cell(one.verdict, mark=MARKS.get(one.verdict, "")),
        *cells,
    )


def build_label(one: EarlierBuild) -> str:
    """What CI called it, else when it started."""
    return one.label or one.started.replace("T", " ").replace("+00:00", "")


def _number(one: Measurement | None) -> Cell:
    return Cell(NONE) if one is None or one.value is None else tables.with_interval(one)


def trend(report: Report) -> Figure | None:
    """Accuracy and latency over builds, oldest first, this one last; nothing below three points of a number."""
    history = report.history
    if history is None:
        return None
    panels = [panel for name in shown_names(report) if (panel := _panel(report, history, name)) is not None]
    if not panels:
        return None
    caption = (
        "Left to right: earlier builds of this recipe by their numbers in the table, this build last. Bars are 95 % intervals. "
        f"`openclaw-opt history {history.path}` says where a level changed."
    )
    return Figure("trend", "Trend over earlier builds", {"vconcat": panels}, earlier_table(report), caption)


def _panel(report: Report, history: HistoryRecord, name: str) -> Spec | None:
    own = views.engine_measurement(report, name)
    rows = [(i, views.of_build(one, name)) for i, one in enumerate(history.builds, 1) if one.name == report.name]
    rows.append((len(history.builds) + 1, own))
    values = [
        _value(i, one, "engine" if one is own else "earlier") for i, one in rows if one is not None and views.known(one)
    ]
    if len(values) < 3:
        return None
    ends = plot.finite(value.get(key) for value in values for key in ("y", "low", "high"))
    x: Spec = {
        "type": "quantitative", "title": None, "axis": {"tickMinStep": 1, "format": "d", "grid": False, "tickCount": 6},
        "scale": {"domain": [0.5, len(history.builds) + 1.5], "nice": False},
    }  # fmt: skip
    y: Spec = {
        "type": "quantitative", "title": None, "axis": {"tickCount": 4, "domain": False, "ticks": False},
        "scale": {"domain": plot.padded(ends, 0.15, 1e-6), "nice": False, "zero": False},
    }  # fmt: skip
    across, up = {"field": "x", **x}, {"field": "y", **y}
    colour = plot.pick("kind", {"earlier": "fourth", "engine": "good"})
    line = {"type": "line", "color": plot.COLOURS["soft"], "strokeWidth": 1.2}
    ends_of = {"x": across, "y": {"field": "low", **y}, "y2": {"field": "high"}}
    dot = {"type": "point", "filled": True, "size": 60, "opacity": 1}
    unit = f" in {own.unit}" if own is not None and own.unit else ""
    return {
        "title": f"{name}{unit}, {own.better if own is not None else ''} is better",
        "width": plot.WIDTH - 90,
        "height": TREND_HEIGHT,
        "data": {"values": values},
        "layer": [
            {"mark": line, "encoding": {"x": across, "y": up}},
            {"mark": {"type": "rule", "color": plot.COLOURS["soft"]}, "encoding": ends_of},
            {"mark": dot, "encoding": {"x": across, "y": up, "color": colour}},
        ],
    }


def _value(index: int, one: Measurement, kind: str) -> Spec:
    ends = plot.finite([one.low, one.high])
    both = {"low": ends[0], "high": ends[1]} if len(ends) == 2 else {}
    return {"x": index, "y": views.number(one), "kind": kind, **both}


def sentences(report: Report) -> Iterator[str]:
    """How many builds are shown, how many are not, and why."""
    history = report.history
    if history is None:
        return
    out = sum(one.builds for one in history.left_out)
    shown = len(history.builds)
    yield f"Earlier builds: {shown} of {shown + out} in `{history.path}` can be compared with this one" + (
        f"; left out: {_told(history.left_out)}." if out else "."
    )
    if history.untimed:
        yield f"Shown without times and memory: {_told(history.untimed)}."


def _told(found: Sequence[LeftOut]) -> str:
    return "; ".join(f"{one.builds} build{'' if one.builds == 1 else 's'} ({numbers.reason(one.why)})" for one in found)
