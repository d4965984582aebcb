"""Builds at the same time on one machine: passes run side by side, a timing runs while nothing else does.

A lone build always has its turn (`Turns`). Builds that share a folder (`SharedTurns`) hold the file `room` shared while they
work and alone while they time; `door` is held for the moment of entering, and by who waits to time, so that a timing
waits for the passes that run and for no later one. The system frees both when a process dies.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from openclaw_opt import interrupts

POLL_S = 0.02


class Turns:
    """Of a build that is alone: never waits."""

    shared: ClassVar[bool] = False
    """Others run at the same time: then each build times its engine, and not what every pass bought."""

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Anything but timing."""
        yield

    @contextlib.contextmanager
    def timing(self) -> Iterator[None]:
        """What must not be disturbed. Not to be entered while `working`."""
        yield


class SharedTurns(Turns):
    """Of builds that name the same folder on the same machine (POSIX `flock`)."""

    shared: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._door, self._room = folder / "door", folder / "room"

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        with contextlib.ExitStack() as held:
            with flocked(self._door, alone=True):
                held.enter_context(flocked(self._room, alone=False))
            yield

    @contextlib.contextmanager
    def timing(self) -> Iterator[None]:
        with flocked(self._door, alone=True), flocked(self._room, alone=True):
            yield


@contextlib.contextmanager
def flocked(file: Path, *, alone: bool) -> Iterator[None]:
    """Hold a lock file, alone or shared; the system frees it when the process dies. Polls, so that Ctrl-C is seen."""
    import fcntl

    with file.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                interrupts.check()
                time.sleep(POLL_S)
        yield
