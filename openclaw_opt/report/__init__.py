"""The report's files: JSON (the record itself), HTML, Markdown, JUnit and benchmark files made from it. All but the writing is pure."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from openclaw_opt.errors import RecipeError
from openclaw_opt.records import SCHEMA_VERSION, Report
from openclaw_opt.store import Store

FILE = "report.json"


def report_json(report: Report) -> str:
    """The report as JSON. Infinite and undefined numbers are the strings `Infinity`, `-Infinity`, `NaN`: JSON has no other."""
    return json.dumps(finite(report.model_dump(mode="python")), indent=1, ensure_ascii=False) + "\n"


def write_report(report: Report, folder: Path, store: Store | None = None) -> tuple[str, ...]:
    """Write report.json, .md and .html, junit.xml and the benchmark files into an existing folder; gives their names.

    Each file is whole or the one before: all are written beside their place first and renamed after. OSError as it comes.
    `store` remembers drawn pictures.
    """
    from openclaw_opt.report.benchmark import FILES, benchmark
    from openclaw_opt.report.html import html
    from openclaw_opt.report.junit import junit
    from openclaw_opt.report.markdown import markdown

    texts = {
        FILE: report_json(report),
        "report.md": markdown(report),
        "report.html": html(report, store),
        "junit.xml": junit(report),
        **{name: benchmark(report, better) for name, better in FILES.items()},
    }
    write_whole(texts, folder)
    return tuple(texts)


def write_whole(texts: Mapping[str, str], folder: Path) -> None:
    """Write every text or none: all are written beside their place first and renamed after."""
    parts: dict[str, Path] = {}
    try:
        for name, text in texts.items():
            parts[name] = _written(folder, name, text)
        for name, part in parts.items():
            part.replace(folder / name)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def read_report(path: Path) -> Report:
    """The report in a file, or in an artifact folder. Raises RecipeError for what is missing, damaged or too new."""
    file = path / FILE if path.is_dir() else path
    data = _parsed(file)
    if "joint_version" in data:
        raise RecipeError(
            "this report joins several builds",
            where=str(file),
            fix="give the builds' own reports: each stands in its folder",
        )
    version = data.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise RecipeError("this is not a report: it states no schema_version", where=str(file))
    if version > SCHEMA_VERSION:
        raise RecipeError(
            f"the report has schema version {version}, and this openclaw-opt reads up to {SCHEMA_VERSION}",
            where=str(file),
            fix="read it with the openclaw-opt that wrote it, or a newer one (`versions` in the file names it)",
        )
    try:
        return Report.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RecipeError(
            f"the report is damaged: `{place}`: {first['msg']}", where=str(file), fix="build again"
        ) from error


def is_joint(file: Path) -> bool:
    """Does it join several builds, whose own reports stand elsewhere? Raises RecipeError for what is no JSON object."""
    return "joint_version" in _parsed(file)


def _parsed(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(
            "there is no report here", where=str(file), fix="give a report.json or the folder of a build"
        ) from error
    except OSError as error:
        raise RecipeError(f"the report cannot be read: {error.strerror}", where=str(file)) from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise RecipeError(
            f"the report is truncated or not JSON: {error}", where=str(file), fix="build again"
        ) from error
    if not isinstance(data, dict):
        raise RecipeError("this is not a report: it holds no JSON object", where=str(file))
    return data


def _written(folder: Path, name: str, text: str) -> Path:
    """A temporary file in the folder, flushed to disk, with the mode that a plainly written file would have."""
    handle, name_ = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    part = Path(name_)
    with contextlib.ExitStack() as undo:
        undo.callback(part.unlink)
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        undo.pop_all()
    mask = os.umask(0)
    os.umask(mask)
    part.chmod(0o666 & ~mask)
    return part


def finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: they are written as words."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value
