"""The rule of every receipt: a quantized layer that runs in another precision fails the build."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openclaw_opt.artifacts import ReceiptRow
from openclaw_opt.errors import VerificationError

SHOWN = 5


def check_realised(rows: Sequence[ReceiptRow], folder: Path) -> None:
    """Raises VerificationError that names the layers that do not run in the format asked for, and what they run in."""
    wrong = [row for row in rows if not row.ok]
    if wrong:
        shown = "; ".join(f"{row.layer}: asked {row.asked}, got {row.realised} ({row.why})" for row in wrong[:SHOWN])
        raise VerificationError(
            f"{len(wrong)} of {len(rows)} quantized layers do not run in the format asked for: {shown}",
            where=str(folder),
            fix="choose a format this backend realises, or set `build: {require: any}`",
        )
