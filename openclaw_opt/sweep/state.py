"""sweep.json: every point and how far it is, the front and the best. Replaced whole after every change."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from openclaw_opt.artifacts import Facts, Measurement
from openclaw_opt.errors import RecipeError
from openclaw_opt.numerics.pareto import Better
from openclaw_opt.records import BudgetRecord

FILE = "sweep.json"
SCHEMA_VERSION = 1
Status = Literal["waiting", "running", "done", "pruned", "failed", "illegal"]
"""`done` has a report, whatever its budgets say; `pruned` was ended early, its accuracy being out of budget already; `failed`
ended with an error and is tried again by the next run; `illegal` cannot be done for this model or target."""


class ObjectiveRecord(Facts):
    """One axis of the front."""

    metric: str
    better: Better


class PointRecord(Facts):
    """One point."""

    name: str
    choices: dict[str, str]
    status: Status
    key: str = ""
    """Digest of the recipe and all that decides its result; a point is taken over while this holds."""
    passes: dict[str, str] = {}
    """Word of each pass to its key in the cache: points that share a key share the work."""
    exit_code: int | None = None
    verdict: str = ""
    seconds: float | None = None
    error: str = ""
    values: dict[str, Measurement] = {}
    """The objectives' measurements, without their samples."""
    budgets: tuple[BudgetRecord, ...] = ()


class SweepRecord(Facts):
    """The whole sweep."""

    schema_version: int = SCHEMA_VERSION
    name: str
    recipe: str
    mode: Literal["grid", "search"]
    axes: tuple[str, ...]
    """As on the command line."""
    seed: int
    objectives: tuple[ObjectiveRecord, ...]
    points: tuple[PointRecord, ...] = ()
    same: dict[str, str] = {}
    """Points with the recipe of an earlier point, which stands for them."""
    front: tuple[str, ...] = ()
    """Points that none beats in every objective, by value."""
    contenders: tuple[str, ...] = ()
    """Points that none surely beats, given the 95 % intervals; the front is among them."""
    best: str | None = None
    rule: str = ""
    """How the best was chosen, or why there is none."""
    exit_code: int | None = None
    notes: tuple[str, ...] = ()


def read_state(folder: Path) -> SweepRecord | None:
    """The sweep in the folder, if there is one. Raises RecipeError for a damaged or newer file."""
    file = folder / FILE
    try:
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = data["schema_version"]
        if version > SCHEMA_VERSION:
            raise RecipeError(
                f"sweep.json has schema version {version}, and this openclaw-opt reads up to {SCHEMA_VERSION}",
                where=str(file),
                fix="go on with the openclaw-opt that wrote it, or give another --output",
            )
        return SweepRecord.model_validate(data)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise RecipeError("sweep.json is damaged", where=str(file), fix="give another --output") from error


def write_state(folder: Path, state: SweepRecord) -> None:
    """Replace sweep.json; OSError as it comes, and the file before is still whole then."""
    replace_file(folder / FILE, state.model_dump_json(indent=1) + "\n")


def replace_file(file: Path, text: str) -> None:
    """Write beside the file, flush to disk, rename over it."""
    handle, part = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(part).chmod(0o644)
        Path(part).replace(file)
    finally:
        Path(part).unlink(missing_ok=True)
