"""Build an artifact's engine again from its resolved recipe, past the cache, and compare it byte by byte.

Earlier passes may come from the cache: their keys are digests of everything that decides them, and the graph's is compared with
the manifest's. The engine is never taken from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from openclaw_opt.artifacts import Engine
from openclaw_opt.errors import RecipeError
from openclaw_opt.hooks import Hooks
from openclaw_opt.pipeline import run_steps, work_of
from openclaw_opt.plan import Step, make_plan, why_redone
from openclaw_opt.publish import RESOLVED, Manifest, read_manifest
from openclaw_opt.recipe import load_recipe
from openclaw_opt.store import Store

CHUNK = 1 << 20


@dataclass(frozen=True)
class Compared:
    """One file of the engine, then and now: sizes in bytes, how many bytes differ, the first of them (None if none does)."""

    file: str
    before: int
    after: int
    differing: int
    first: int | None

    @property
    def same(self) -> bool:
        return self.before == self.after and self.differing == 0

    def line(self) -> str:
        if self.same:
            return f"{self.file}: {self.before:,} bytes, identical"
        sizes = f"{self.before:,} bytes" if self.before == self.after else f"{self.before:,} → {self.after:,} bytes"
        where = f", the first at {self.first:,}" if self.first is not None else ""
        return f"{self.file}: {sizes}, {self.differing:,} bytes differ{where}"


@dataclass(frozen=True)
class Rebuilt:
    """Attributes: files: compared; because: what decides the engine and is not as it was then, one sentence each."""

    files: tuple[Compared, ...]
    because: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return all(one.same for one in self.files)


def rebuild(folder: Path, *, store: Store, hooks: Hooks) -> Rebuilt:
    """Raises RecipeError where the folder holds no engine to build again; whatever the passes raise."""
    recipe_file, manifest, engine = folder / RESOLVED, read_manifest(folder), Engine(folder)
    if manifest is None or not recipe_file.is_file() or not (folder / Engine.facts_file).is_file():
        raise RecipeError(
            "there is no engine to build again", where=str(folder), fix="give the folder of a finished build"
        )
    if not engine.facts.finished:
        raise RecipeError(
            "the engine is not built yet",
            where=str(folder),
            fix=f"on the GPU host: openclaw-opt build {folder} --resume",
        )
    plan = make_plan(load_recipe(recipe_file), store)
    steps = plan.steps
    _, graph = run_steps(plan, steps[:-1], store, manifest, hooks)
    last = steps[-1]
    because = [
        f"{step.part.word}: {why_redone(step, manifest.ingredients_of(step))}"
        for step in steps
        if _moved(step, manifest)
    ]
    with store.making() as work:
        hooks.started(last.part.word, last.index + 1, len(steps))
        last.part.run(graph, work_of(plan, work, store, hooks.progress))
        made = Engine(work)
        files = tuple(_compared(folder, made, name) for name in engine.facts.files)
    return Rebuilt(files, tuple(because))


def _moved(step: Step, manifest: Manifest) -> bool:
    """Did anything that decides the step change since?"""
    known = manifest.ingredients_of(step)
    return known is None or dict(known) != step.ingredients


def _compared(folder: Path, made: Engine, name: str) -> Compared:
    old, new = folder / name, made.folder / name
    before = old.stat().st_size if old.is_file() else 0
    after = new.stat().st_size if new.is_file() else 0
    differing, first = 0, None
    if before and after:
        for offset, left, right in _chunks(old, new):
            if left == right:
                continue
            places = [at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b]
            first = offset + places[0] if first is None and places else first
            differing += len(places)
    return Compared(name, before, after, differing + abs(before - after), first)


def _chunks(old: Path, new: Path) -> Iterator[tuple[int, bytes, bytes]]:
    with old.open("rb") as one, new.open("rb") as other:
        offset = 0
        while (left := one.read(CHUNK)) and (right := other.read(CHUNK)):
            yield offset, left, right
            offset += CHUNK
