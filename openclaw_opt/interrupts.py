"""Ctrl-C and SIGTERM end a build in an orderly way, wherever it is.

They raise `Interrupted`, which no library takes for its own: click turns KeyboardInterrupt into a silent exit. An exception
raised inside a destructor or an import hook can be swallowed, so whoever reports progress asks `check` again.
"""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The user, or the job's scheduler, wants this to end. `exit_code` is 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


_caught: list[int] = []


def install() -> None:
    """Take both signals from now on; only the main thread may."""
    for number in SIGNALS:
        signal.signal(number, _raise)


def check() -> None:
    """Raise Interrupted if a signal has come and its exception was swallowed."""
    if _caught:
        raise Interrupted(_caught[-1])


def _raise(number: int, frame: FrameType | None) -> None:
    _caught.append(number)
    raise Interrupted(number)
