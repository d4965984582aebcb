"""What each pass bought in time and money: from what every pass gave an engine is made, and all are timed in turns.

A Model is turned into an engine by the recipe's later passes that make something else of it (export, fuse, build); later ones
that change a Model again are left out. A portable Graph runs on ONNX Runtime as it is, without `fuse`. What these passes make
lies in the same store under the same keys as in a recipe that has these passes alone, and rows with one key are one engine.

Where the engine does not run here and is for a GPU of the target table, the bound of `metrics/roofline.py` is counted of the
same graphs instead, and says that it is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psutil

from openclaw_opt.artifacts import Artifact, Engine, Graph, Measurement, Model
from openclaw_opt.backends.engines import cannot_run, open_session
from openclaw_opt.costs import bounded, pass_cost
from openclaw_opt.errors import OptError
from openclaw_opt.measure import measurement_key, priced_by_recipe, roofline_of
from openclaw_opt.metrics.latency import FEWEST_ROUNDS, OVERTIME, Latency
from openclaw_opt.metrics.pass_times import PREFILL, TOKEN, box_s, pass_rows, speedups, time_passes
from openclaw_opt.metrics.roofline import Roofline, read_work
from openclaw_opt.metrics.subject import Opener, Subject
from openclaw_opt.plan import Plan, Step, keyed_steps
from openclaw_opt.records import PassRecord
from openclaw_opt.report.views import A_MODEL
from openclaw_opt.report.views import THE_ENGINE as ENGINE
from openclaw_opt.store import Store, tree_size

if TYPE_CHECKING:
    from openclaw_opt.hooks import Hooks
    from openclaw_opt.passes import Pass
    from openclaw_opt.turns import Turns

    Run = Callable[[Plan, tuple[Step, ...], Store, None, Hooks, Turns], tuple[list[PassRecord], Artifact]]

BESIDE = 1.5
"""Engines side by side want about this many times their files in memory."""
NAMES = {"decoder": ("latency.ttft.p50_ms", "latency.decode.p50_ms")}
OTHERS = ("latency.infer.p50_ms",)


@dataclass(frozen=True)
class Stage:
    """One pass and the engine that shows what it bought.

    Attributes:
        key: of the engine; stages with one key share it.
        timed: what is timed, for people.
        base: index of the pass whose engine it is compared with; None if there is none like it.
        over: what that pass is called.
        variant: the plan that makes the engine; None where the build has it.
        portable: the engine is the graph of this step as it is.
    """

    step: Step
    key: str
    timed: str
    base: int | None = None
    over: str = ""
    variant: Plan | None = None
    portable: bool = False


@dataclass(frozen=True)
class Workplace:
    """Where engines are made, by what, and how it is told. `run` is the pipeline's fold over steps."""

    store: Store
    hooks: Hooks
    turns: Turns
    run: Run


def with_passes(
    records: tuple[PassRecord, ...], plan: Plan, steps: tuple[Step, ...], artifact: Artifact, place: Workplace
) -> tuple[PassRecord, ...]:
    """The records with latency, speedup and cost of every pass: measured, a bound, or why neither."""
    latency = next((one for one in plan.recipe.metrics if isinstance(one, Latency)), None)
    if latency is None or not latency.passes or not isinstance(artifact, Engine):
        return records
    why, stages = cannot_run(artifact.facts), stages_of(plan, steps, artifact.facts.backend, place.store)
    if not why:
        found = _timed(latency, stages, plan, artifact, place)
    elif plan.recipe.target.is_gpu:
        found = _bounds(stages, plan, steps, artifact, place)
    else:
        found = {stage.step.index: {"latency": _without(latency, plan, why)} for stage in stages}
    told = {stage.step.index: stage for stage in stages}
    return tuple(
        record.model_copy(update=_update(told[record.index], found[record.index])) if record.index in told else record
        for record in records
    )


def _update(stage: Stage, found: Mapping[str, Any]) -> dict[str, Any]:
    return {"timed": stage.timed, "speedup_over": stage.over if found.get("speedups") else "", **found}


def stages_of(plan: Plan, steps: Sequence[Step], backend: str, store: Store) -> tuple[Stage, ...]:
    """A stage for every pass. Nothing is run: a variant's keys say whether its engine is in the store."""
    last_graph = max(step.index for step in steps if step.part.gives() is Graph)
    found: list[Stage] = []
    before: dict[type[Artifact], Step] = {}
    for step in steps:
        kind, word = step.part.gives(), step.part.word
        base = before.get(kind)
        if kind is Model:
            made = _of_model(plan, steps, step, backend, store)
        elif kind is Graph and step.index < last_graph:
            left_out = ", ".join(f"`{one.part.word}`" for one in steps[step.index + 1 : last_graph + 1])
            made = Stage(step, step.key, f"the graph as `{word}` gave it, without {left_out}", portable=True)
        else:
            made = Stage(step, steps[-1].key, ENGINE)
        found.append(made if base is None else replace(made, base=base.index, over=_name(base, steps)))
        before[kind] = step
    return tuple(found)


def _name(step: Step, steps: Sequence[Step]) -> str:
    """Its word; with its place where another pass has the same."""
    word = step.part.word
    return word if sum(one.part.word == word for one in steps) == 1 else f"{step.index + 1} {word}"


def _of_model(plan: Plan, steps: Sequence[Step], step: Step, backend: str, store: Store) -> Stage:
    tail = [one.part for one in steps[step.index + 1 :] if not _changes_a_model(one.part)]
    if len(tail) == len(steps) - step.index - 1:
        return Stage(step, steps[-1].key, ENGINE)
    kept = (*(one.part for one in steps[: step.index + 1]), *tail)
    recipe = replace(plan.recipe, passes=kept, metrics=(), budgets=(), evaluation=None, backend=backend)
    variant = replace(plan, recipe=recipe)
    variant = replace(variant, steps=keyed_steps(variant, store))
    through = ", ".join(f"`{part.word}`" for part in tail)
    timed = f"{A_MODEL} as `{step.part.word}` gave it, by {through}"
    return Stage(step, variant.steps[-1].key, timed, variant=variant)


def _changes_a_model(part: Pass) -> bool:
    return part.takes() is Model and part.gives() is Model


def _without(latency: Latency, plan: Plan, why: str) -> tuple[Measurement, ...]:
    return tuple(latency.unmeasured(name, why) for name in NAMES.get(plan.spec.task, OTHERS))


# ---- measured


def _timed(
    latency: Latency, stages: Sequence[Stage], plan: Plan, engine: Engine, place: Workplace
) -> dict[int, dict[str, Any]]:
    """Rows of every stage, from the store where these very engines were timed on this machine before."""
    key = measurement_key({"passes": [stage.key for stage in stages], "latency": latency.model_dump(mode="json")})
    with place.store.claimed(key):
        stored = place.store.find(key)
        if stored is None:
            rows, whole = _race(latency, stages, plan, engine, place)
            if whole:
                kept = {
                    str(i): {name: [m.model_dump(mode="json") for m in ms] for name, ms in row.items()}
                    for i, row in rows.items()
                }
                with place.store.making() as folder:
                    place.store.keep(folder, key, {"kind": "passes", "rows": kept})
        else:
            rows = {
                int(i): {name: tuple(map(Measurement.model_validate, ms)) for name, ms in row.items()}
                for i, row in stored["rows"].items()
            }
    return {i: row | _cost(plan, row["latency"]) for i, row in rows.items()}


def _cost(plan: Plan, rows: Sequence[Measurement]) -> dict[str, Any]:
    recipe = plan.recipe
    return {"cost": pass_cost(recipe.target, plan.spec.task, rows, None, priced_by_recipe=priced_by_recipe(recipe))}


def _race(
    latency: Latency, stages: Sequence[Stage], plan: Plan, engine: Engine, place: Workplace
) -> tuple[dict[int, dict[str, tuple[Measurement, ...]]], bool]:
    """The rows, and whether every engine could be made and timed: a failure is tried again by the next build."""
    _announce(latency, stages, place)
    engines, failed = _engines(stages, engine, place)
    why = _too_large(engines)
    if not why:
        try:
            with place.turns.timing():
                times, load = time_passes(latency, [_opener(one) for one in engines.values()])
        except OptError as error:
            why = error.what
    if why:
        return {stage.step.index: {"latency": _without(latency, plan, why)} for stage in stages}, False
    by_key = dict(zip(engines, times, strict=True))
    keys = {stage.step.index: stage.key for stage in stages}
    rows: dict[int, dict[str, tuple[Measurement, ...]]] = {}
    for stage in stages:
        own, base = by_key.get(stage.key), by_key.get(keys[stage.base]) if stage.base is not None else None
        if own is None:
            rows[stage.step.index] = {"latency": _without(latency, plan, failed[stage.key])}
            continue
        rows[stage.step.index] = {
            "latency": pass_rows(latency, own, load),
            "speedups": speedups(base, own, stage.over) if base is not None else (),
        }
    return rows, not failed


def _announce(latency: Latency, stages: Sequence[Stage], place: Workplace) -> None:
    words = dict.fromkeys(f"`{stage.step.part.word}`" for stage in stages if stage.base is not None)
    count = len({stage.key for stage in stages})
    box = box_s(latency)
    place.hooks.note(
        f"timing what {', '.join(words) or 'each pass'} bought: {count} engines in turns, about {box:g} s "
        f"(at most {OVERTIME * box:g} s, for {FEWEST_ROUNDS} rounds); `latency: {{passes: false}}` leaves it out"
    )


def _engines(
    stages: Sequence[Stage], engine: Engine, place: Workplace
) -> tuple[dict[str, Engine | Graph], dict[str, str]]:
    """Engine by key, and why there is none by key."""
    found: dict[str, Engine | Graph] = {}
    failed: dict[str, str] = {}
    for stage in stages:
        if stage.key in found or stage.key in failed:
            continue
        if stage.portable and engine.facts.backend != "onnxruntime":
            failed[stage.key] = (
                f"{engine.facts.tool} does not run the graph itself: its engine is made of what `fuse` gives"
            )
        elif stage.portable:
            found[stage.key] = Graph(place.store.folder(stage.step.key))
        elif stage.variant is None:
            found[stage.key] = engine
        else:
            try:
                found[stage.key] = _made(stage, stage.variant, place)
            except OptError as error:
                failed[stage.key] = f"no engine could be made of {stage.timed}: {error.what}"
    return found, failed


def _made(stage: Stage, variant: Plan, place: Workplace) -> Engine:
    hooks = Quiet(place.hooks, f"making an engine of what `{stage.step.part.word}` gave")
    _, made = place.run(variant, variant.steps, place.store, None, hooks, place.turns)
    assert isinstance(made, Engine)
    return made


def _too_large(engines: Mapping[str, Artifact]) -> str:
    need = BESIDE * sum(tree_size(one.folder) for one in engines.values())
    free = psutil.virtual_memory().available
    if need <= free:
        return ""
    return f"{len(engines)} engines side by side want about {need / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free"


def _opener(one: Engine | Graph) -> tuple[Opener, Any]:
    facts = one.facts.graph if isinstance(one, Engine) else one.facts
    return Opener(lambda: open_session(one)), facts


class Quiet:
    """Passes of a variant are progress of one line, and no passes of the build."""

    def __init__(self, hooks: Hooks, text: str) -> None:
        self._hooks, self._text = hooks, text

    def started(self, title: str, position: int, total: int) -> None:
        self._hooks.progress(position / (total + 1), f"{self._text}: {title}")

    def progress(self, fraction: float, text: str) -> None:
        self._hooks.progress(fraction, f"{self._text}: {text}")

    def finished(self, record: PassRecord) -> None: ...

    def note(self, text: str) -> None:
        self._hooks.note(text)


# ---- bounds


def _bounds(
    stages: Sequence[Stage], plan: Plan, steps: Sequence[Step], engine: Engine, place: Workplace
) -> dict[int, dict[str, Any]]:
    """What the target's figures allow for the graph of each stage; a ratio of bounds where there are two."""
    options, found = roofline_of(plan.recipe), dict[int, dict[str, Any]]()
    by_index: dict[int, tuple[Measurement, ...]] = {}
    why = cannot_run(engine.facts)
    for stage in stages:
        try:
            graph = _graph_of(stage, steps, place)
        except OptError as error:
            rows: tuple[Measurement, ...] = tuple(options.all_unmeasured(plan.spec.task, error.what, subject="bound"))
            found[stage.step.index] = {"latency": rows}
            continue
        rows = _bound_rows(options, plan, graph, why)
        if stage.step.part.gives() is Model:  # no bound tells a fused graph from another
            by_index[stage.step.index] = rows
        cost = bounded(read_work(graph.folder), graph.facts, options, plan.recipe.target)
        priced = priced_by_recipe(plan.recipe)
        found[stage.step.index] = {
            "latency": rows,
            "speedups": tuple(_ratios(by_index.get(-1 if stage.base is None else stage.base, ()), rows)),
            "cost": pass_cost(plan.recipe.target, plan.spec.task, (), cost, priced_by_recipe=priced),
        }
    return found


def _graph_of(stage: Stage, steps: Sequence[Step], place: Workplace) -> Graph:
    if stage.portable:
        return Graph(place.store.folder(stage.step.key))
    if stage.variant is None:
        return Graph(place.store.folder(next(step.key for step in reversed(steps) if step.part.gives() is Graph)))
    hooks = Quiet(place.hooks, f"the graph of {stage.timed}")
    before = tuple(step for step in stage.variant.steps if step.part.gives() is not Engine)
    _, made = place.run(stage.variant, before, place.store, None, hooks, place.turns)
    assert isinstance(made, Graph)
    return made


def _bound_rows(options: Roofline, plan: Plan, graph: Graph, why: str) -> tuple[Measurement, ...]:
    closed = Opener(None, "engine", why)
    subject = Subject(graph.facts, plan.recipe.target, closed, closed, closed, graph=graph.folder)
    return tuple(row for row in options.measure(subject) if row.subject == "bound")


def _ratios(before: Sequence[Measurement], after: Sequence[Measurement]) -> Iterator[Measurement]:
    names = {"roofline.decode_ms": TOKEN, "roofline.infer_ms": TOKEN, "roofline.ttft_ms": PREFILL}
    slow = {row.name: row.value for row in before}
    for row in after:
        base = slow.get(row.name)
        if base and row.value:
            note = "a ratio of bounds, no measurement"
            yield Measurement(
                name=names[row.name], value=base / row.value, unit="×", better="higher", subject="bound", note=note
            )
