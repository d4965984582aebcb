"""The whole sweep on one page: check every point, run what is not there yet, decide, write.

A sweep that was killed goes on from what had ended; passes of a point that was in the middle are in the cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openclaw_opt.errors import MachineError, RecipeError
from openclaw_opt.pipeline import disk_errors
from openclaw_opt.plan import make_plan
from openclaw_opt.publish import locked
from openclaw_opt.recipe import recipe_name
from openclaw_opt.store import Store
from openclaw_opt.sweep.axes import Axis, Range, combinations
from openclaw_opt.sweep.decide import objectives_of
from openclaw_opt.sweep.executor import Executor, Watcher
from openclaw_opt.sweep.ledger import LOGS, POINTS, RECIPES, Ledger
from openclaw_opt.sweep.points import Base, Point, Points, check_points, corners
from openclaw_opt.sweep.search import Search, need_optuna
from openclaw_opt.sweep.state import FILE, SweepRecord, read_state


@dataclass(frozen=True)
class Asked:
    """A sweep as it was asked for. `search` is the number of points to try, None for the whole grid."""

    base: Base
    axes: tuple[Axis, ...]
    ranges: tuple[Range, ...]
    search: int | None
    objectives: tuple[str, ...]
    seed: int
    skip_illegal: bool

    @property
    def name(self) -> str:
        return recipe_name(self.base.file)


def sweep(asked: Asked, *, store: Store, output: Path | None, executor: Executor, watcher: Watcher) -> SweepRecord:
    """Do it. The record's `exit_code` is the sweep's.

    Raises:
        RecipeError: mistakes of the recipe, the axes or the folder, before any work.
        MachineError: what this machine or cluster lacks, before any work; a full disk, whenever.
    """
    points, start = _planned(asked)
    executor.prepare([point.recipe.target for point in points.legal])
    folder = (output or Path("sweep") / asked.name).absolute()
    with contextlib.closing(executor), locked(folder), disk_errors():
        last = _opened(folder, store)
        early, shared = asked.search is not None, executor.width > 1
        ledger = Ledger(folder, store, watcher, start=start, last=last, early=early, shared=shared)
        if asked.search is None:
            _grid(points, ledger, executor, watcher)
        else:
            made_of = make_plan(points.legal[0].recipe, store).steps[0].key
            search = Search(
                asked.base,
                asked.axes,
                asked.ranges,
                objectives=start.objectives,
                number=asked.search,
                width=executor.width,
                seed=asked.seed,
                folder=folder,
                made_of=made_of,
            )
            _search(search, asked.search, ledger, executor, watcher)
        return ledger.finish()


def _planned(asked: Asked) -> tuple[Points, SweepRecord]:
    """Every check that needs no work, and the sweep's record without results."""
    if asked.search is not None:
        need_optuna()
    elif asked.ranges:
        raise RecipeError(
            "a range has no end of values: it is for --search",
            where=asked.ranges[0].where,
            fix="add --search 20, or name values with --grid",
        )
    if not asked.axes and not asked.ranges:
        raise RecipeError("nothing varies", fix="--grid passes.quantize.format=int8,int4")
    grid = combinations(corners(asked.axes, asked.ranges))
    points = check_points(asked.base, grid, skip_illegal=asked.skip_illegal)
    objectives = objectives_of([(point.recipe, point.task) for point in points.legal], asked.objectives)
    record = SweepRecord(
        name=asked.name,
        recipe=str(asked.base.file),
        mode="grid" if asked.search is None else "search",
        axes=(*(axis.where for axis in asked.axes), *(one.where for one in asked.ranges)),
        seed=asked.seed,
        objectives=objectives,
    )
    return points, record


def _opened(folder: Path, store: Store) -> SweepRecord | None:
    """The sweep that was here before. Refuses a folder of somebody else's."""
    if folder.exists() and not folder.is_dir():
        raise RecipeError("the output folder is a file", where=str(folder), fix="--output FOLDER")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / FILE).is_file():
        raise RecipeError(
            "the output folder holds files and no sweep", where=str(folder), fix="--output another folder"
        )
    try:
        for name in (POINTS, RECIPES, LOGS):
            (folder / name).mkdir(parents=True, exist_ok=True)
        store.root.mkdir(
            parents=True, exist_ok=True
        )  # so that hashes of the checkpoint are kept from the first point on
    except (NotADirectoryError, PermissionError, FileExistsError) as error:
        raise MachineError(
            f"the folder cannot be written: {error.strerror}", where=str(error.filename), fix="--output, --cache"
        ) from error
    return read_state(folder)


def _grid(points: Points, ledger: Ledger, executor: Executor, watcher: Watcher) -> None:
    ledger.expect(points.legal, points.same)
    ledger.illegal(points.illegal)
    todo = [point for point in points.legal if not ledger.take(point)]
    watcher.planned(len(points.legal), len(points.legal) - len(todo))
    _generation(todo, ledger, executor)


def _search(search: Search, total: int, ledger: Ledger, executor: Executor, watcher: Watcher) -> None:
    search.again(ledger.take_search())
    watcher.planned(total, len(ledger.ended))
    while generation := search.ask(ledger.ended):
        _generation(generation, ledger, executor)
        search.tell(ledger.ended)
    ledger.illegal(search.illegal)
    ledger.note(search.note)


def _generation(points: Sequence[Point], ledger: Ledger, executor: Executor) -> None:
    outcomes = executor.run(ledger.jobs(points))
    try:
        for outcome in outcomes:
            ledger.record(outcome)
    finally:
        outcomes.close()  # ends what still runs
        ledger.stopped()
