"""The one thread between a build and whoever watches it."""

from __future__ import annotations

from typing import Protocol

from openclaw_opt.records import PassRecord


class Hooks(Protocol):
    """How a build tells what it does. The terminal implements it; tests record it."""

    def started(self, title: str, position: int, total: int) -> None: ...
    def progress(self, fraction: float, text: str) -> None: ...
    def finished(self, record: PassRecord) -> None: ...
    def note(self, text: str) -> None: ...
