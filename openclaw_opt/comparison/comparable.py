"""May two numbers be compared? They must be of the same checkpoint and evaluation data, times of the same machine too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openclaw_opt.comparison.rows import metric_of
from openclaw_opt.errors import RecipeError
from openclaw_opt.metrics import Metric
from openclaw_opt.records import BaselineRecord, Report
from openclaw_opt.report.provenance import machine_line, metrics_in

ELSEWHERE = frozenset({"path"})
"""Keys of a data source that say where it lies; `identities` are of what it holds."""
SHOWN = 12
"""Digits of a sha256 in a message."""


@dataclass(frozen=True)
class Provenance:
    """What a report's numbers are of."""

    checkpoint: frozenset[str]
    """sha256 of the weight files."""
    evaluation: Mapping[str, Any]
    machine: str
    target: str
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def provenance_of(report: Report) -> Provenance:
    """Of a report that was written."""
    return Provenance(
        checkpoint=frozenset(report.checkpoint_files.values()),
        evaluation=report.data.get("evaluation") or {},
        machine=machine_line(report.machine),
        target=report.target,
        metrics=metrics_in(report.recipe),
    )


def baseline_record(report: Report, path: str) -> BaselineRecord:
    """What a build keeps of the report it is held against."""
    return BaselineRecord(
        name=report.name,
        path=path,
        started=report.started,
        machine=machine_line(report.machine),
        target=report.target,
        measurements=report.measurements,
        checkpoint_files=report.checkpoint_files,
        evaluation=report.data.get("evaluation") or {},
        metrics=metrics_in(report.recipe),
    )


def provenance_of_baseline(record: BaselineRecord) -> Provenance:
    """The same of the kept record."""
    return Provenance(
        frozenset(record.checkpoint_files.values()), record.evaluation, record.machine, record.target, record.metrics
    )


def check_model(ours: Provenance, theirs: Provenance, where: str) -> None:
    """Raises RecipeError where the two are of different checkpoints: then nothing can be compared."""
    why = other_model(ours, theirs)
    if why:
        raise RecipeError(f"not comparable: {why}", where=where, fix="compare builds of the same checkpoint")


def other_model(ours: Provenance, theirs: Provenance) -> str:
    """How the checkpoints differ; empty if they are the same."""
    if not ours.checkpoint or not theirs.checkpoint:
        return "a report does not say which checkpoint it is of"
    if ours.checkpoint == theirs.checkpoint:
        return ""
    a, b = (", ".join(sorted(one[:SHOWN] for one in side.checkpoint)) for side in (theirs, ours))
    return f"another checkpoint: weights of sha256 {a}… there, {b}… here"


def why_not(name: str, ours: Provenance, theirs: Provenance) -> str:
    """Why the two numbers of that name cannot be compared; empty if they can."""
    metric = metric_of(name)
    if metric is None:
        return ""
    if metric.needs_data:
        return other_data(ours, theirs)
    if metric.depends_on != "artifact" and ours.target != theirs.target:
        return f"another target: {theirs.target} there, {ours.target} here"
    if metric.depends_on == "machine" and ours.machine != theirs.machine:
        return f"another machine: {theirs.machine} there, {ours.machine} here"
    return _other_options(metric, ours, theirs)


def other_data(ours: Provenance, theirs: Provenance) -> str:
    """How the evaluation data differ; empty if they are the same."""
    if not ours.evaluation or not theirs.evaluation:
        return "a report does not say which evaluation data it is of"
    keys = sorted((ours.evaluation.keys() | theirs.evaluation.keys()) - ELSEWHERE)
    different = [key for key in keys if ours.evaluation.get(key) != theirs.evaluation.get(key)]
    return f"other evaluation data: {_differences(different, ours.evaluation, theirs.evaluation)}" if different else ""


def _other_options(metric: type[Metric], ours: Provenance, theirs: Provenance) -> str:
    word = metric.__module__.rsplit(".", 1)[1].replace("_", "-")
    mine, other = ({**_defaults(metric), **side.metrics.get(word, {})} for side in (ours, theirs))
    different = [key for key in sorted(mine.keys() | other.keys()) if mine.get(key) != other.get(key)]
    different = [key for key in different if key not in metric.effort]
    return f"other options of `{word}`: {_differences(different, mine, other)}" if different else ""


def _defaults(metric: type[Metric]) -> dict[str, Any]:
    return metric().model_dump(mode="json")


def _differences(keys: list[str], ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_short(theirs.get(key))} there, {_short(ours.get(key))} here" for key in keys)


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:SHOWN]}…" if len(text) > 2 * SHOWN else text
