"""The books of a sweep while it runs: what every point is, on disk after every change, and what is made of it at the end.

A point of an earlier run is taken over while the digest of its recipe and of everything that decides its result is the same.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from openclaw_opt.errors import MachineError, RecipeError
from openclaw_opt.plan import make_plan, source_facts
from openclaw_opt.report import read_report
from openclaw_opt.report.joint import write_joint
from openclaw_opt.store import Store, digest
from openclaw_opt.sweep.decide import decided, row_of
from openclaw_opt.sweep.executor import Watcher
from openclaw_opt.sweep.points import Illegal, Point
from openclaw_opt.sweep.state import PointRecord, SweepRecord, replace_file, write_state
from openclaw_opt.sweep.trial import Job, Outcome

POINTS, RECIPES, LOGS, BEST = "points", "recipes", "logs", "best.yaml"
TAKEN = ("done", "pruned")


class Ledger:
    """Points by name, in the order in which they were asked for.

    Args:
        start: the sweep without points.
        last: what an earlier run left in the folder.
        early, shared: see `Job`.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        watcher: Watcher,
        *,
        start: SweepRecord,
        last: SweepRecord | None,
        early: bool,
        shared: bool,
    ) -> None:
        self._folder, self._store, self._watcher = folder, store, watcher
        self._state, self._early, self._shared = start, early, shared
        self._last = {} if last is None else {point.name: point for point in last.points}
        self._points: dict[str, PointRecord] = {}

    @property
    def ended(self) -> dict[str, PointRecord]:
        """Points of this run that need nothing more."""
        return {name: point for name, point in self._points.items() if point.status not in ("waiting", "running")}

    def take(self, point: Point) -> bool:
        """Take over an earlier run's result of this point, if there is one and it still holds."""
        last = self._last.get(point.name)
        if last is None or last.status not in TAKEN or (last.status == "pruned" and not self._early):
            return False
        if last.key != self._key(point)[0] or not self._is_whole(last):
            return False
        self._put(last)
        return True

    def take_search(self) -> list[PointRecord]:
        """Take over all of an earlier search that ended well; the points that have to be tried again are returned."""
        again = []
        for point in self._last.values():
            if point.status in TAKEN and self._is_whole(point):
                self._put(point)
            elif point.status in (*TAKEN, "failed"):
                again.append(point)
        return again

    def _is_whole(self, point: PointRecord) -> bool:
        try:
            return point.status != "done" or bool(read_report(self._folder / POINTS / point.name))
        except RecipeError:
            return False

    def expect(self, points: Sequence[Point], same: Sequence[tuple[str, str]]) -> None:
        """The points of a grid, in its order; those that are the same recipe as an earlier one are named."""
        for point in points:
            self._put(PointRecord(name=point.name, choices=point.choices, status="waiting"))
        self._state = self._state.model_copy(update={"same": dict(same)})

    def illegal(self, points: Sequence[Illegal]) -> None:
        for point in points:
            code, why = point.why.exit_code, str(point.why)
            self._put(PointRecord(name=point.name, choices=point.choices, status="illegal", exit_code=code, error=why))

    def jobs(self, points: Sequence[Point]) -> Iterator[Job]:
        """All points wait from now on; each is running when its job is taken, keyed by the files as they are then."""
        for point in points:
            self._put(PointRecord(name=point.name, choices=point.choices, status="waiting"))
        self._write()
        return self._started(points)

    def _started(self, points: Sequence[Point]) -> Iterator[Job]:
        for point in points:
            recipe = self._folder / RECIPES / f"{point.name}.yaml"
            replace_file(recipe, point.text)
            key, passes = self._key(point)
            self._put(self._points[point.name].model_copy(update={"status": "running", "key": key, "passes": passes}))
            self._write()
            self._watcher.started(point.name)
            yield Job(
                name=point.name,
                recipe=recipe,
                output=self._folder / POINTS / point.name,
                log=self._folder / LOGS / f"{point.name}.log",
                store=self._store.root,
                target=point.recipe.target.name,
                early=self._early,
                shared=self._shared,
            )

    def _key(self, point: Point) -> tuple[str, dict[str, str]]:
        """Digest of all that decides the point's result, and the key of each of its passes."""
        plan = make_plan(point.recipe, self._store)
        passes = {f"{step.index + 1} {step.part.word}": step.key for step in plan.steps}
        data = source_facts(point.recipe.evaluation)
        return digest({"recipe": point.text, "passes": passes, "evaluation": data}), passes

    def record(self, outcome: Outcome) -> None:
        """Raises MachineError when a disk is full: other points would fail of it, too."""
        rows = {
            objective.metric: row.model_copy(update={"raw": (), "items": (), "weights": ()})
            for objective in self._state.objectives
            if (row := row_of(objective.metric, outcome.rows)) is not None
        }
        point = self._points[outcome.name].model_copy(
            update={
                "status": outcome.status,
                "exit_code": outcome.exit_code,
                "verdict": outcome.verdict,
                "seconds": round(outcome.seconds, 3),
                "error": outcome.error,
                "values": rows,
                "budgets": outcome.budgets,
            }
        )
        self._put(point)
        self.note(outcome.note)
        self._write()
        self._watcher.finished(point)
        if outcome.full:
            raise MachineError(
                "the disk is full",
                where=outcome.name,
                fix="free space and run the same command: points that ended and whole passes are kept",
            )

    def stopped(self) -> None:
        """No trial runs any more: those that were in the middle wait for the next run. A full disk keeps the file as it was."""
        running = [point for point in self._points.values() if point.status == "running"]
        for point in running:
            self._put(point.model_copy(update={"status": "waiting"}))
        if running:
            with contextlib.suppress(OSError):
                self._write()

    def finish(self) -> SweepRecord:
        """Front, best and joint report; the record that says how it all went."""
        left = sorted(name for name, point in self._last.items() if point.status == "done" and name not in self._points)
        if left:
            self.note(f"points of an earlier sweep stay in the folder and are not in the report: {', '.join(left)}")
        if self._shared:
            self.note("points were built at the same time; while one was timed, the others on that machine paused")
        self._state = decided(self._current())
        reports = [
            (name, read_report(self._folder / POINTS / name))
            for name, point in self._points.items()
            if point.status == "done"
        ]
        if reports:
            write_joint(reports, self._folder, f"Sweep of {self._state.name}: {len(reports)} points")
        self._write_best()
        write_state(self._folder, self._state)
        return self._state

    def _write_best(self) -> None:
        file, best = self._folder / BEST, self._state.best
        if best is None:
            file.unlink(missing_ok=True)  # one of an earlier run would be taken for this one's
            return
        numbers = [f"{name} {row.value:.6g} {row.unit}".strip() for name, row in self._points[best].values.items()]
        head = [
            f"The best of the sweep of {self._state.name}: {best}",
            self._state.rule,
            ", ".join(numbers),
            f"openclaw-opt build --recipe {shlex.quote(str(file))}",
        ]
        text = (self._folder / RECIPES / f"{best}.yaml").read_text(encoding="utf-8")
        replace_file(file, "".join(f"# {line}\n" for line in head) + text)

    def note(self, text: str) -> None:
        if text and text not in self._state.notes:
            self._state = self._state.model_copy(update={"notes": (*self._state.notes, text)})
            self._watcher.note(text)

    def _put(self, point: PointRecord) -> None:
        self._points[point.name] = point

    def _current(self) -> SweepRecord:
        return self._state.model_copy(update={"points": tuple(self._points.values())})

    def _write(self) -> None:
        write_state(self._folder, self._current())
