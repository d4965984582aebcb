"""What the tests of sweeps share: a recipe that prunes, an executor without processes, a watcher that remembers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path

from openclaw_opt.store import Store
from openclaw_opt.sweep.axes import parse
from openclaw_opt.sweep.executor import Executor
from openclaw_opt.sweep.points import Base
from openclaw_opt.sweep.run import Asked, sweep
from openclaw_opt.sweep.state import PointRecord, SweepRecord
from openclaw_opt.sweep.trial import Job, Outcome, run_trial
from openclaw_opt.targets import Target

Write = Callable[..., Path]
PRUNED = ("passes:\n", "passes:\n  - prune: {ffn: 0.4}\n")
"""Puts a pruning pass before the others into the recipe of conftest.py; 0.4 of 96 channels leaves 64."""
AUTO = ("algorithm: max", "algorithm: auto")
FORMATS = "passes.quantize.format=int8,int8_weight_only"


class Inline:
    """Runs trials in this process, one after another, and remembers them."""

    width = 1

    def __init__(self) -> None:
        self.ran: list[str] = []

    def prepare(self, targets: Sequence[Target]) -> None: ...

    def close(self) -> None: ...

    def run(self, jobs: Iterable[Job]) -> Generator[Outcome]:
        for job in jobs:
            self.ran.append(job.name)
            yield run_trial(job, lambda fraction, text: None)


class Remembering:
    """A watcher for assertions."""

    def __init__(self) -> None:
        self.ended: list[PointRecord] = []
        self.notes: list[str] = []

    def planned(self, total: int, taken: int) -> None:
        self.total, self.taken = total, taken

    def started(self, name: str) -> None: ...
    def progress(self, name: str, fraction: float, text: str) -> None: ...

    def finished(self, point: PointRecord) -> None:
        self.ended.append(point)

    def note(self, text: str) -> None:
        self.notes.append(text)


def asked(
    file: Path,
    *grid: str,
    ranges: Sequence[str] = (),
    search: int | None = None,
    objectives: Sequence[str] = (),
    settings: Sequence[str] = (),
    skip_illegal: bool = False,
) -> Asked:
    axes, spans = parse(grid, ranges)
    return Asked(
        base=Base(file, tuple(settings)),
        axes=axes,
        ranges=spans,
        search=search,
        objectives=tuple(objectives),
        seed=0,
        skip_illegal=skip_illegal,
    )


def run(
    what: Asked, cache: Path, output: Path, executor: Executor | None = None, watcher: Remembering | None = None
) -> SweepRecord:
    return sweep(
        what, store=Store(cache), output=output, executor=executor or Inline(), watcher=watcher or Remembering()
    )


def by_name(state: SweepRecord) -> dict[str, PointRecord]:
    return {point.name: point for point in state.points}
