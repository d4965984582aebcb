"""A history of builds that CI keeps: a JSON Lines file with a line a build, or a folder of reports, a sweep's among them.

A line holds what is compared from build to build and no samples, so that a thousand builds stay a few megabytes. Adding a
build twice adds it once. The file is replaced whole under a lock; a line that cannot be read is an error that names it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ValidationError

from openclaw_opt.artifacts import Facts
from openclaw_opt.errors import MachineError, RecipeError
from openclaw_opt.records import BuildLine, Report
from openclaw_opt.report import FILE, is_joint, read_report
from openclaw_opt.report.provenance import machine_line, metrics_in
from openclaw_opt.report.views import BOUND, REFERENCE
from openclaw_opt.store import digest

SCHEMA = 2
"""Version 2 added `hardware` and `metrics`; a line of version 1 reads as one without them."""


class Level(Facts):
    """One number of one build."""

    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""
    better: str = "neither"


class Entry(BuildLine):
    """One build, with what its numbers depend on."""

    schema_version: int = SCHEMA
    model: str
    """Digest of the checkpoint's weight files."""
    data: str
    """Digest of what the evaluation data holds."""
    budgets: tuple[str, ...] = ()
    """Measurements with a budget: what a regression is looked for in."""
    levels: dict[str, Level] = {}
    hardware: str = ""
    """The machine with its cores and GPU: what times depend on."""
    metrics: dict[str, dict[str, Any]] = {}
    """Metrics with their options: under what the numbers were taken."""


def entry_of(report: Report, label: str = "") -> Entry:
    """What history keeps of a report."""
    own = [
        one
        for one in report.measurements
        if one.value is not None and not one.at and one.subject not in (REFERENCE, BOUND)
    ]
    return Entry(
        schema_version=SCHEMA,
        name=report.name,
        label=label,
        started=report.started,
        verdict=report.verdict,
        target=report.target,
        machine=report.machine.title,
        model=model_digest(report.checkpoint_files),
        data=data_digest(report.data.get("evaluation", {})),
        budgets=tuple(dict.fromkeys(budget.metric for budget in report.budgets)),
        levels={
            one.name: Level(value=one.value, low=one.low, high=one.high, unit=one.unit, better=one.better)
            for one in own
            if one.value is not None
        },
        hardware=machine_line(report.machine),
        metrics=metrics_in(report.recipe),
    )


def model_digest(files: Mapping[str, str]) -> str:
    """Of the checkpoint's weight files, by name and sha256."""
    return digest(dict(files))[:16]


def data_digest(evaluation: Mapping[str, Any]) -> str:
    """Of what the evaluation data holds."""
    return digest({key: value for key, value in evaluation.items() if key != "python"})[:16]


def read_history(path: Path) -> tuple[Entry, ...]:
    """Every build of a history, oldest first.

    Raises:
        RecipeError: it is not there, or a line or a report in it cannot be read.
    """
    if path.is_dir():
        found = [entry_of(read_report(file)) for file in sorted(path.rglob(FILE)) if not is_joint(file)]
        found += [entry for file in sorted(path.glob("*.jsonl")) for entry in _lines(file)]
        if not found:
            raise RecipeError("the folder holds no report.json and no *.jsonl", where=str(path))
    elif path.exists():
        found = list(_lines(path))
    else:
        raise RecipeError(
            "there is no history here",
            where=str(path),
            fix=f"openclaw-opt history {path} --add build/RECIPE starts one",
        )
    return tuple(sorted(_unique(found), key=lambda entry: entry.started))


def add(path: Path, entries: Sequence[Entry]) -> int:
    """Add builds to a history file, made if it is not there; gives how many were new.

    Raises:
        RecipeError: the path is a folder, or holds something else.
        MachineError: it cannot be written.
    """
    if path.is_dir():
        raise RecipeError(
            "a folder of reports is a history as it is; nothing is added to it",
            where=str(path),
            fix="copy the build's folder into it, or name a file: --add to history.jsonl",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            known = list(_lines(path)) if path.exists() else []
            kept = _unique([*known, *entries])
            part = path.with_name(f".{path.name}.{os.getpid()}.part")
            part.write_text(
                "".join(f"{entry.model_dump_json(exclude_unset=True)}\n" for entry in kept), encoding="utf-8"
            )
            part.replace(path)
    except OSError as error:
        raise MachineError(f"the history cannot be written: {error.strerror}", where=str(path)) from error
    return len(kept) - len(known)


def _unique(entries: Sequence[Entry]) -> list[Entry]:
    return list({entry.model_dump_json(): entry for entry in entries}.values())


def _lines(file: Path) -> Iterator[Entry]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the history cannot be read: {error}", where=str(file)) from error
    for number, line in enumerate(lines, 1):
        yield _entry(line, f"{file}:{number}")


def _entry(line: str, where: str) -> Entry:
    fix = "remove the line; the other builds stay"
    try:
        data = json.loads(line)
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > SCHEMA:
            newer = f"the build was kept with schema version {version}, and this openclaw-opt reads up to {SCHEMA}"
            raise RecipeError(newer, where=where, fix="read it with the openclaw-opt that wrote it, or a newer one")
        return Entry.model_validate(data)
    except json.JSONDecodeError as error:
        raise RecipeError(f"the line is truncated or not JSON: {error.msg}", where=where, fix=fix) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RecipeError(f"the line is no build: `{place}`: {first['msg']}", where=where, fix=fix) from error
