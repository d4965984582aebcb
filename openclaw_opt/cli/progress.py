"""How a build shows that it goes on: a live bar a pass on a terminal, one line a pass where there is none."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from openclaw_opt.hooks import Hooks
    from openclaw_opt.records import PassRecord

Shown = TypeVar("Shown")
EVERY_S = 30.0
"""Without a terminal, a long pass says so this often: CI ends jobs that are silent."""


def make_hooks(*, quiet: bool) -> AbstractContextManager[Hooks]:
    """The hooks that fit where standard error goes."""
    return fitting(Silent, Live, Plain, quiet=quiet)


@contextlib.contextmanager
def fitting(
    silent: Callable[[], Shown],
    live: Callable[[], AbstractContextManager[Shown]],
    plain: Callable[[], Shown],
    *,
    quiet: bool,
) -> Iterator[Shown]:
    """Nothing if asked, a live display on a terminal, lines elsewhere."""
    if quiet:
        yield silent()
    elif sys.stderr.isatty():
        with live() as shown:
            yield shown
    else:
        yield plain()


def record_line(record: PassRecord) -> str:
    """`quantize   25 of 26 linear layers to int8   12.3 s`, with what was verified or measured."""
    took = "cached" if record.cached else f"{record.seconds:.1f} s"
    checked = ""
    if record.verification is not None and record.verification.value is not None:
        checked = f"; verified, largest difference {record.verification.value:.1e}"
    again = f" [{record.redone_why}]" if record.redone_why and record.redone_why != "first build" else ""
    return f"{record.word:<9} {record.changed}{checked} ({took}){again}"


class Silent:
    """Says nothing."""

    def started(self, title: str, position: int, total: int) -> None: ...
    def progress(self, fraction: float, text: str) -> None: ...
    def finished(self, record: PassRecord) -> None: ...
    def note(self, text: str) -> None: ...


class Plain:
    """A line when a pass ends, and now and then while it runs."""

    def __init__(self) -> None:
        self._title, self._said = "", time.monotonic()

    def started(self, title: str, position: int, total: int) -> None:
        self._title, self._said = f"[{position}/{total}] {title}", time.monotonic()

    def progress(self, fraction: float, text: str) -> None:
        if time.monotonic() - self._said > EVERY_S:
            self._said = time.monotonic()
            print(f"{self._title} {fraction:.0%} {text}", file=sys.stderr, flush=True)

    def finished(self, record: PassRecord) -> None:
        print(record_line(record), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Live:
    """A rich progress bar for the running pass; finished passes stay above it as lines."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(24),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
        )
        self._progress: Progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task: TaskID | None = None

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def started(self, title: str, position: int, total: int) -> None:
        self._drop()
        self._task = self._progress.add_task(f"[{position}/{total}] {title}".replace("[", "\\["), total=1.0, text="")

    def progress(self, fraction: float, text: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=fraction, text=text)

    def finished(self, record: PassRecord) -> None:
        self._drop()
        self._progress.console.print(record_line(record), markup=False, highlight=False)

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def _drop(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
