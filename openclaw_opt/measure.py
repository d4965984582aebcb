"""The recipe's metrics on what the passes gave, measured once for this artifact on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from openclaw_opt.artifacts import Artifact, Engine, Graph, Measurement
from openclaw_opt.plan import Plan, Step, source_digest, source_facts
from openclaw_opt.records import PassRecord
from openclaw_opt.store import Store, digest
from openclaw_opt.targets import cpu_title, host
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
    return digest(
        {
            "measure": [{metric.word: metric.model_dump(mode="json")} for metric in plan.recipe.metrics],
            "of": last.key,
            "data": source_facts(plan.recipe.evaluation),
            "machine": [cpu_title(), host().title],
            "versions": versions(),
            "openclaw_opt": source_digest(),
        }
    )


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
