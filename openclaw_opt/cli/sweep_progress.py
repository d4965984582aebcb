"""How a sweep shows that it goes on, and its table at the end: a bar a running point on a terminal, plain lines otherwise."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer

from openclaw_opt.cli.progress import EVERY_S, fitting

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from openclaw_opt.sweep.executor import Watcher
    from openclaw_opt.sweep.state import PointRecord, SweepRecord

    class Shown(Watcher, Protocol):
        """What the command line gives to a sweep."""


def make_watcher(*, quiet: bool) -> contextlib.AbstractContextManager[Shown]:
    """The watcher that fits where standard error goes."""
    return fitting(Silent, Live, Plain, quiet=quiet)


def point_line(point: PointRecord) -> str:
    """`format=int4,ffn=0.1  within budget  perplexity.recovery 0.98  size_mib 6.2  (12.3 s)`."""
    numbers = [f"{name} {_number(row.value)}" for name, row in point.values.items()]
    said = {"done": point.verdict, "pruned": f"ended early: {point.error}"}.get(
        point.status, f"{point.status} (exit code {point.exit_code}): {first_line(point.error)}"
    )
    took = f"({point.seconds:.1f} s)" if point.seconds is not None else ""
    return "  ".join(part for part in (point.name, said, *numbers, took) if part)


def first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def print_sweep(state: SweepRecord, folder: Path) -> None:
    """The table of points and the one line that says what to do."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("point", overflow="fold")
    table.add_column("")
    table.add_column("verdict", overflow="fold")
    for objective in state.objectives:
        way = "↑" if objective.better == "higher" else "↓"
        table.add_column(f"{objective.metric} {way}".replace(".", "\n."), justify="right", overflow="fold")
    for point in state.points:
        rows = [point.values.get(objective.metric) for objective in state.objectives]
        numbers = ["" if row is None else _number(row.value) for row in rows]
        verdict = point.verdict if point.status == "done" else point.status
        table.add_row(point.name, _mark(point.name, state), verdict, *numbers)
    console = Console()
    console.print(table, markup=False, highlight=False)
    legend = {"front": "on the Pareto front", "near": "not told from the front by the 95 % intervals"}
    marks = {_mark(point.name, state) for point in state.points}
    used = [f"{mark}: {told}" for mark, told in legend.items() if mark in marks]
    for line in (*used, *(f"note: {note}" for note in state.notes), *_failures(state)):
        typer.echo(line)
    typer.echo(last_line(state, folder))


def _mark(name: str, state: SweepRecord) -> str:
    if name == state.best:
        return "best, front" if name in state.front else "best"
    return "front" if name in state.front else "near" if name in state.contenders else ""


def _failures(state: SweepRecord) -> list[str]:
    """One line a point that did not end well; the log has the rest."""
    shown = [point for point in state.points if point.status in ("failed", "illegal")]
    return [f"{point.status}: {point.name}: {first_line(point.error)}" for point in shown]


def last_line(state: SweepRecord, folder: Path) -> str:
    """What to do next; the last line of the output, for CI logs."""
    count = {status: sum(point.status == status for point in state.points) for status in ("done", "pruned", "failed")}
    told = f"{count['done']} points built"
    told += f", {count['pruned']} ended early" if count["pruned"] else ""
    told += f", {count['failed']} failed (logs in {folder / 'logs'}; the same command tries them again)" if count["failed"] else ""  # fmt: skip
    if state.best is None:
        return f"{told}; {state.rule}; see {folder / 'report.md'}"
    command = f"openclaw-opt build --recipe {shlex.quote(str(folder / 'best.yaml'))}"
    return f"{told}; best: {state.best} ({state.rule}): {command}"


class Silent:
    """Says nothing."""

    def planned(self, total: int, taken: int) -> None: ...
    def started(self, name: str) -> None: ...
    def progress(self, name: str, fraction: float, text: str) -> None: ...
    def finished(self, point: PointRecord) -> None: ...
    def note(self, text: str) -> None: ...


class Plain:
    """A line when a point ends, and now and then while one runs."""

    def __init__(self) -> None:
        self._total, self._ended, self._said = 0, 0, time.monotonic()

    def planned(self, total: int, taken: int) -> None:
        self._total, self._ended = total, taken
        self._say(f"{total} points" + (f", {taken} of them from an earlier run" if taken else ""))

    def started(self, name: str) -> None: ...

    def progress(self, name: str, fraction: float, text: str) -> None:
        if time.monotonic() - self._said > EVERY_S:
            self._say(f"{name} {fraction:.0%} {text}")

    def finished(self, point: PointRecord) -> None:
        self._ended += 1
        self._say(f"[{self._ended}/{self._total}] {point_line(point)}")

    def note(self, text: str) -> None:
        self._say(f"note: {text}")

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        print(text, file=sys.stderr, flush=True)


class Live:
    """One bar for the sweep, one a running point; points that ended stay above as lines."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(20),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
        )
        self._progress: Progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._all: TaskID | None = None
        self._tasks: dict[str, TaskID] = {}
        self._total, self._ended = 0, 0

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def planned(self, total: int, taken: int) -> None:
        self._total, self._ended = total, taken
        if self._all is None:
            self._all = self._progress.add_task("points", total=total, text="")
        self._count()

    def started(self, name: str) -> None:
        self._tasks[name] = self._progress.add_task(name.replace("[", "\\["), total=1.0, text="")

    def progress(self, name: str, fraction: float, text: str) -> None:
        if name in self._tasks:
            self._progress.update(self._tasks[name], completed=fraction, text=text.replace("[", "\\["))

    def finished(self, point: PointRecord) -> None:
        self._ended += 1
        task = self._tasks.pop(point.name, None)
        if task is not None:
            self._progress.remove_task(task)
        self._progress.console.print(point_line(point), markup=False, highlight=False)
        self._count()

    def note(self, text: str) -> None:
        self._progress.console.print(f"note: {text}", markup=False, highlight=False)

    def _count(self) -> None:
        if self._all is not None:
            self._progress.update(self._all, completed=self._ended, text=f"{self._ended} of {self._total}")
