"""Several reports → one: a table of recipes, the Pareto front, and what must not be compared, apart with the reason.

Accuracy is comparable between builds of one checkpoint on one evaluation set; latency where the same measurement was taken on
the same machine for the same target. Nothing else is put into one ranking.
"""

from __future__ import annotations

from collections.abc import Sequence

from openclaw_opt.artifacts import Facts, Measurement
from openclaw_opt.records import CostRecord, Report, Verdict
from openclaw_opt.report import views
from openclaw_opt.store import digest

JOINT_VERSION = 1


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
    """The metric that every row of the group has; None where this build did not measure it."""
    latency: Measurement | None
    size_bytes: int | None
    cost: CostRecord | None = None
    on_front: bool = False
    """No other row of the group is at least as good in accuracy and latency (or size, see `front_of`) and better in one."""


class JointGroup(Facts):
    """Builds that may be compared: the same checkpoint, the same evaluation data."""

    model: str
    evaluation: str
    """Source and fingerprint of the evaluation data."""
    why_apart: str = ""
    """Why this group is not comparable with the first; empty for the first."""
    front_of: str = ""
    """What the front weighs accuracy against: a latency measurement, or `size`."""
    rows: tuple[JointRow, ...]


class Joint(Facts):
    """The joint report: `report.json` of a sweep and of `openclaw-opt report A B C`."""

    joint_version: int = JOINT_VERSION
    title: str
    groups: tuple[JointGroup, ...]
    """The largest group first."""


def joined(reports: Sequence[tuple[str, Report]], title: str = "joint report") -> Joint:
    """The reports by what may be compared, with the front of each group. Pure; reports need not be finished."""
    groups: dict[str, list[tuple[str, Report]]] = {}
    for source, report in reports:
        groups.setdefault(_comparable(report), []).append((source, report))
    ranked = sorted(groups.values(), key=len, reverse=True)
    return Joint(title=title, groups=tuple(_group(members, ranked[0][0][1]) for members in ranked))


def _comparable(report: Report) -> str:
    """Equal exactly where accuracy may be compared."""
    return digest({"model": report.checkpoint_files or report.model, "data": report.data.get("evaluation")})


def _group(members: Sequence[tuple[str, Report]], first: Report) -> JointGroup:
    report = members[0][1]
    accuracy, latency = _shared_accuracy([one for _, one in members]), _shared_latency([one for _, one in members])
    rows = [_row(source, one, accuracy, latency) for source, one in members]
    by_latency = sum(row.accuracy is not None and row.latency is not None for row in rows) > 1
    front = _front(rows, by_latency)
    return JointGroup(
        model=report.model,
        evaluation=_evaluation(report),
        why_apart=why_apart(report, first),
        front_of=latency if by_latency else "size",
        rows=tuple(row.model_copy(update={"on_front": i in front}) for i, row in enumerate(rows)),
    )


def why_apart(report: Report, first: Report) -> str:
    """One sentence, or nothing where they may be compared."""
    if (report.checkpoint_files or report.model) != (first.checkpoint_files or first.model):
        return f"another checkpoint ({report.model}): its accuracy and latency say nothing about {first.model}"
    if report.data.get("evaluation") != first.data.get("evaluation"):
        return f"other evaluation data ({_evaluation(report)}): accuracy on it cannot be compared with {_evaluation(first)}"
    return ""


def _evaluation(report: Report) -> str:
    facts = report.data.get("evaluation")
    if not isinstance(facts, dict):
        return "no evaluation data"
    return ", ".join(f"{key} {value}" for key, value in facts.items() if isinstance(value, (str, int)))


def _shared_accuracy(reports: Sequence[Report]) -> str:
    """The accuracy that most reports measured; of those the one the first report shows first."""
    shown = views.accuracy_name(reports[0])
    names = [one.name for report in reports for one in report.measurements if views.is_accuracy(one) and not one.at]
    count = {name: sum(_value(report, name) is not None for report in reports) for name in dict.fromkeys(names)}
    return max(count, key=lambda name: (count[name], name == shown, name.endswith("recovery")), default="")


def _shared_latency(reports: Sequence[Report]) -> str:
    """The time that most reports measured on the engine; a median before other percentiles, decode before prefill."""
    names = [one.name for report in reports for one in views.latencies(report) if one.unit == "ms" and not one.at]
    count = {name: sum(_value(report, name) is not None for report in reports) for name in dict.fromkeys(names)}
    order = ("latency.decode.p50_ms", "latency.infer.p50_ms")
    return max(count, key=lambda name: (count[name], name in order, "p50" in name), default="")


def _value(report: Report, name: str) -> Measurement | None:
    found = views.engine_measurement(report, name) if name else None
    return found if found is not None and found.value is not None else None


def _row(source: str, report: Report, accuracy: str, latency: str) -> JointRow:
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
        latency=_lean(_value(report, latency)),
        size_bytes=views.result_size(report)[1],
        cost=next((one for one in report.costs if one.target == report.target), None),
    )


def _lean(one: Measurement | None) -> Measurement | None:
    """Without raw samples and items: those stay in each build's own report."""
    return None if one is None else one.model_copy(update={"raw": (), "items": (), "weights": ()})


def _front(rows: Sequence[JointRow], by_latency: bool) -> set[int]:
    """Indexes of the rows that no other dominates."""
    points: dict[int, tuple[float, float]] = {}
    for i, row in enumerate(rows):
        cost = (row.latency.value if row.latency else None) if by_latency else row.size_bytes
        if row.accuracy is not None and row.accuracy.value is not None and cost is not None:
            score = row.accuracy.value if row.accuracy.better == "higher" else -row.accuracy.value
            points[i] = (score, -float(cost))
    return {
        i
        for i, own in points.items()
        if not any(other != own and all(a >= b for a, b in zip(other, own, strict=True)) for other in points.values())
    }
