"""What runs trials: something that takes jobs and gives outcomes as they come, in any order."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Protocol

from openclaw_opt.sweep.state import PointRecord
from openclaw_opt.sweep.trial import Job, Outcome
from openclaw_opt.targets import Target


class Executor(Protocol):
    """One place to run trials. A trial that dies is an outcome, never an exception of `run`."""

    @property
    def width(self) -> int:
        """How many trials run at once; known after `prepare`."""

    def prepare(self, targets: Sequence[Target]) -> None:
        """Raise MachineError for what can be known to fail before any work, e.g. a target that no node has."""

    def run(self, jobs: Iterable[Job]) -> Generator[Outcome]:
        """An outcome for every job. Closing the iterator ends the trials that run."""

    def close(self) -> None:
        """Give back processes or nodes."""


class Watcher(Protocol):
    """How a sweep tells what it does. The terminal implements it."""

    def planned(self, total: int, taken: int) -> None:
        """Points in all, and how many of them are taken over from an earlier run."""

    def started(self, name: str) -> None: ...
    def progress(self, name: str, fraction: float, text: str) -> None: ...
    def finished(self, point: PointRecord) -> None: ...
    def note(self, text: str) -> None: ...
