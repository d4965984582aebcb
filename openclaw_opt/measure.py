"""The recipe's metrics on what the passes gave, measured once for this artifact on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from openclaw_opt.artifacts import Artifact, Engine, Graph, GraphFacts, Measurement
from openclaw_opt.costs import Bounded, costs_of, least_seconds
from openclaw_opt.metrics.roofline import Roofline, read_work
from openclaw_opt.plan import Plan, Step, source_digest, source_facts
from openclaw_opt.recipe import Recipe
from openclaw_opt.records import PassRecord, Report
from openclaw_opt.store import Store, digest
from openclaw_opt.targets import TARGETS, cpu_title, host
from openclaw_opt.turns import Turns
from openclaw_opt.versions import versions

if TYPE_CHECKING:
    from openclaw_opt.hooks import Hooks


def measure(
    plan: Plan, steps: Sequence[Step], artifact: Artifact, store: Store, hooks: Hooks, turns: Turns | None = None
) -> tuple[Measurement, ...]:
    """One row for every number of every metric; from the store if this machine has measured this artifact before."""
    if not plan.recipe.metrics:
        return ()
    hooks.started("measure", len(steps) + 1, len(steps) + 1)
    return remembered(
        store, _key(plan, steps[-1]), lambda: _measure(plan, steps, artifact, store, hooks, turns or Turns())
    )


def remembered(store: Store, key: str, make: Callable[[], tuple[Measurement, ...]]) -> tuple[Measurement, ...]:
    """Measurements from the store, or made and put there."""
    with store.claimed(key):
        stored = store.find(key)
        if stored is not None:
            return tuple(Measurement.model_validate(row) for row in stored["rows"])
        rows = make()
        with store.making() as folder:
            store.keep(folder, key, {"kind": "measurements", "rows": [row.model_dump(mode="json") for row in rows]})
    return rows


def _key(plan: Plan, last: Step) -> str:
    metrics = [{metric.word: _deciding(metric.model_dump(mode="json"))} for metric in plan.recipe.metrics]
    return measurement_key({"measure": metrics, "of": last.key, "data": source_facts(plan.recipe.evaluation)})


def _deciding(options: dict[str, Any]) -> dict[str, Any]:
    """`passes` is of other engines than the one that is measured."""
    return {name: value for name, value in options.items() if name != "passes"}


def measurement_key(of: Mapping[str, Any]) -> str:
    """Of what is measured on this machine with these versions."""
    here = {"machine": [cpu_title(), host().title], "versions": versions(), "openclaw_opt": source_digest()}
    return digest({**of, **here})


def _measure(
    plan: Plan, steps: Sequence[Step], artifact: Artifact, store: Store, hooks: Hooks, turns: Turns
) -> tuple[Measurement, ...]:
    from openclaw_opt.evaluate import subject_of

    with turns.working():
        subject = subject_of(plan, artifact, graph_before(steps, artifact, store), store)
    rows: list[Measurement] = []
    for i, metric in enumerate(plan.recipe.metrics):
        hooks.progress(i / len(plan.recipe.metrics), metric.word)
        with turns.timing() if metric.timed else turns.working():
            rows += metric.measure(subject)
    return tuple(rows)


def with_costs(report: Report, plan: Plan, steps: Sequence[Step], artifact: Artifact, store: Store) -> Report:
    """The report with what a million tokens cost on each target; the bounds come from the store where they are known."""
    priced, bounds = priced_by_recipe(plan.recipe), _bounds(plan, steps, artifact, store)
    costs = costs_of(plan.recipe.target, report.task, report.measurements, bounds, priced_by_recipe=priced)
    return report.model_copy(update={"costs": costs})


def priced_by_recipe(recipe: Recipe) -> bool:
    """Does the recipe itself say what an hour costs?"""
    return isinstance(recipe.located.data.get("target"), dict) and recipe.target.hourly_usd is not None


def roofline_of(recipe: Recipe) -> Roofline:
    """The recipe's roofline, or one with every default."""
    return next((metric for metric in recipe.metrics if isinstance(metric, Roofline)), Roofline())


def _bounds(plan: Plan, steps: Sequence[Step], artifact: Artifact, store: Store) -> dict[str, Bounded]:
    """The least seconds of a token on every GPU row; counted once for a graph and the roofline's options."""
    options = roofline_of(plan.recipe)
    rows = {name: asdict(row) | {"hourly_usd": None} for name, row in TARGETS.items()}
    key = digest({"bounds": options.model_dump(), "of": steps[-1].key, "targets": rows, "code": source_digest()})
    stored = store.find(key)
    if stored is not None:
        return {name: Bounded(**one) for name, one in stored["rows"].items()}
    graph = artifact if isinstance(artifact, Graph) else graph_before(steps, artifact, store)
    facts = (
        graph.facts
        if graph is not None
        else GraphFacts(task=plan.spec.task, dialect="portable", dtype="float32", family=plan.spec.family, opset=23)
    )
    bounds = least_seconds(read_work(graph.folder) if graph is not None else None, facts, options)
    with store.making() as folder:
        store.keep(folder, key, {"kind": "bounds", "rows": {name: asdict(one) for name, one in bounds.items()}})
    return bounds


def graph_before(steps: Sequence[Step], artifact: Artifact, store: Store) -> Graph | None:
    """The lowered graph an engine was built from."""
    if not isinstance(artifact, Engine):
        return None
    return next((Graph(store.folder(step.key)) for step in reversed(steps) if step.part.gives() is Graph), None)


def with_latency(records: Sequence[PassRecord], measurements: Sequence[Measurement]) -> tuple[PassRecord, ...]:
    """The last pass carries the engine's latency. Nothing is timed before there is an engine, and the report says so."""
    timed = tuple(
        m for m in measurements if m.name.startswith("latency.") and m.subject == "engine" and m.value is not None
    )
    return tuple(r if r is not records[-1] else r.model_copy(update={"latency": timed}) for r in records)
