"""What comes out of a rewrite of a Model's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openclaw_opt.artifacts import Model


@dataclass(frozen=True)
class Rewritten:
    """What was made, in words and in numbers; `details` is JSON for the report."""

    model: Model
    sentence: str
    count: int
    details: dict[str, Any]
