"""Several reports → one value: builds by what may be compared, and the Pareto front of each group. Pure.

Accuracy is comparable between builds of one checkpoint on one evaluation set; latency where the same measurement was taken on
the same machine for the same target. Nothing else is put into one ranking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from openclaw_opt.artifacts import Facts, Measurement
from openclaw_opt.records import CostRecord, Report, Verdict
from openclaw_opt.report import views
from openclaw_opt.store import digest

JOINT_VERSION = 1
SIZE = "size"
HASH = 32
"""Characters from which a value is a hash, and is shown by its beginning."""
FEW, SHORT = 5, 16
"""So many builds, with names of so many characters, are named in a picture; else they are numbered."""


class JointRow(Facts):
    """One build in the joint table."""

    source: str
    """Where the report came from: a path, or the name of a sweep's trial."""
    name: str
    verdict: Verdict
    exit_code: int
    target: str
    target_title: str
    machine: str
    started: str
    accuracy: Measurement | None
    """The measurement that the group shares; None where this build has no value of it."""
    latency: Measurement | None
    size_bytes: int | None
    cost: CostRecord | None = None
    """On the build's own target."""
    timed_alike: bool = False
    """Its latency was measured on the machine and for the target that most of the group were."""
    on_front: bool = False
    """No other row is at least as good in accuracy and in what `front_of` names, and better in one."""


class JointGroup(Facts):
    """Builds that may be compared: the same checkpoint, the same evaluation data."""

    model: str
    evaluation: str
    """Source and facts of the evaluation data."""
    why_apart: str = ""
    """Why this group is not comparable with the first; empty for the first."""
    front_of: str = ""
    """What the front weighs accuracy against: a latency measurement, or `size`."""
    timed_on: str = ""
    """The machine and target whose latencies are compared."""
    rows: tuple[JointRow, ...]


class Joint(Facts):
    """The joint report: `report.json` of a sweep and of `openclaw-opt report A B C`."""

    joint_version: int = JOINT_VERSION
    title: str
    groups: tuple[JointGroup, ...]
    """The largest group first."""


def joined(reports: Sequence[tuple[str, Report]], title: str = "joint report") -> Joint:
    """The reports, each with the name it is known by, grouped by what may be compared. Reports need not be finished."""
    groups: dict[str, list[tuple[str, Report]]] = {}
    for source, report in reports:
        groups.setdefault(_comparable(report), []).append((source, report))
    ranked = sorted(groups.values(), key=len, reverse=True)
    return Joint(title=title, groups=tuple(_group(members, ranked[0][0][1]) for members in ranked))


def _comparable(report: Report) -> str:
    """Equal exactly where accuracy may be compared."""
    return digest({"model": _checkpoint(report), "data": report.data.get("evaluation")})


def _checkpoint(report: Report) -> object:
    """The hashes of the weights, wherever they lie; the name where a report states none."""
    return sorted(report.checkpoint_files.values()) or report.model


def _group(members: Sequence[tuple[str, Report]], first: Report) -> JointGroup:
    reports = [report for _, report in members]
    accuracy, latency = _shared_accuracy(reports), _shared_latency(reports)
    timed = Counter(_timed_on(report) for report in reports if _value(report, latency) is not None)
    where = timed.most_common(1)[0][0] if timed else ""
    rows = [_row(source, report, accuracy, latency, where) for source, report in members]
    by_latency = sum(row.accuracy is not None and row.timed_alike for row in rows) > 1
    front = _front(rows, by_latency)
    return JointGroup(
        model=reports[0].model,
        evaluation=_evaluation(reports[0]),
        why_apart=why_apart(reports[0], first),
        front_of=latency if by_latency else SIZE,
        timed_on=where,
        rows=tuple(row.model_copy(update={"on_front": i in front}) for i, row in enumerate(rows)),
    )


def why_apart(report: Report, first: Report) -> str:
    """Why the two must not be compared, or nothing where they may."""
    if _checkpoint(report) != _checkpoint(first):
        return f"another checkpoint ({report.model}): its accuracy and latency say nothing about {first.model}"
    if report.data.get("evaluation") != first.data.get("evaluation"):
        return f"other evaluation data ({_evaluation(report)}): accuracy on it cannot be compared with accuracy on {_evaluation(first)}"
    return ""


def _evaluation(report: Report) -> str:
    facts = report.data.get("evaluation")
    if not isinstance(facts, dict):
        return "no evaluation data"
    shown = {key: str(value) for key, value in facts.items() if isinstance(value, (str, int, float))}
    return ", ".join(f"{key} {value if len(value) <= HASH else value[:12] + '…'}" for key, value in shown.items())


def _timed_on(report: Report) -> str:
    return report.target_title if report.target == "host" else f"{report.target_title} ({report.machine.title})"


def _shared_accuracy(reports: Sequence[Report]) -> str:
    """The accuracy that most reports measured; among equals the one the first report shows first."""
    shown = views.accuracy_name(reports[0])
    names = [one.name for report in reports for one in report.measurements if views.is_accuracy(one)]
    count = {name: sum(_value(report, name) is not None for report in reports) for name in dict.fromkeys(names)}
    return max(count, key=lambda name: (count[name], name == shown, name.endswith("recovery")), default="")


def _shared_latency(reports: Sequence[Report]) -> str:
    """The time that most reports measured on the engine; a median before other percentiles, decode before prefill."""
    names = [one.name for report in reports for one in views.latencies(report) if one.unit == "ms"]
    count = {name: sum(_value(report, name) is not None for report in reports) for name in dict.fromkeys(names)}
    order = ("latency.decode.p50_ms", "latency.infer.p50_ms")
    return max(count, key=lambda name: (count[name], name in order, "p50" in name), default="")


def _value(report: Report, name: str) -> Measurement | None:
    found = views.engine_measurement(report, name) if name else None
    return found if found is not None and views.known(found) else None


def _row(source: str, report: Report, accuracy: str, latency: str, where: str) -> JointRow:
    time = _value(report, latency)
    return JointRow(
        source=source,
        name=report.name,
        verdict=report.verdict,
        exit_code=report.exit_code,
        target=report.target,
        target_title=report.target_title,
        machine=report.machine.title,
        started=report.started,
        accuracy=_lean(_value(report, accuracy)),
        latency=_lean(time),
        size_bytes=views.result_size(report)[1],
        cost=next((one for one in report.costs if one.target == report.target), None),
        timed_alike=time is not None and _timed_on(report) == where,
    )


def _lean(one: Measurement | None) -> Measurement | None:
    """Without raw samples and items: those stay in each build's own report."""
    return None if one is None else one.model_copy(update={"raw": (), "items": (), "weights": ()})


def points(group: JointGroup, against: str) -> tuple[tuple[int, views.Point], ...]:
    """Index of the row and its point, for the rows that have both numbers; `against` is `size` or a latency."""
    names = row_labels(group)
    found = []
    for i, row in enumerate(group.rows):
        cost = _size(row) if against == SIZE else row.latency if row.timed_alike else None
        if row.accuracy is not None and cost is not None:
            kind = {"within budget": "engine", "budget missed": "missed"}.get(row.verdict, "other")
            short = str(i + 1) if names[i].startswith(f"{i + 1} ") else ""
            found.append((i, views.Point(names[i], kind, cost, row.accuracy, short)))
    return tuple(found)


def row_labels(group: JointGroup) -> tuple[str, ...]:
    """The builds' names, with where they came from if two have the same; numbered where names are too long for a picture."""
    names = [one.name for one in group.rows]
    told = [one.name if names.count(one.name) == 1 else f"{one.name} ({one.source})" for one in group.rows]
    if len(told) <= FEW and max(map(len, told), default=0) <= SHORT:
        return tuple(told)
    return tuple(f"{i} {name}" for i, name in enumerate(told, 1))


def _size(row: JointRow) -> Measurement | None:
    if row.size_bytes is None:
        return None
    return Measurement(name="size", value=float(row.size_bytes), unit="bytes", better="lower")


def _front(rows: Sequence[JointRow], by_latency: bool) -> set[int]:
    """Indexes of the rows that no other dominates."""
    group = JointGroup(model="", evaluation="", rows=tuple(rows))
    placed = points(group, "latency" if by_latency else SIZE)
    on_it = views.front([point for _, point in placed])
    return {placed[i][0] for i in on_it}
