"""Behaviour is a file: a pass, metric, data source, backend or deploy target is found by the name of its file.

The recipe's word is the file's name with `-` for `_`. Listing names imports nothing; only a file that is named is imported.
The one public subclass of the folder's base that the file defines is the part.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import TypeVar

from openclaw_opt.errors import RecipeError, nearest

Base = TypeVar("Base")
ROOT = Path(__file__).parent


def part_names(folder: str) -> list[str]:
    """Words of one folder of the package (`passes`, `metrics`, `data`), sorted; no file is imported."""
    return sorted(word for word, _ in _files(folder) if _holds_part(folder, word))


@cache
def _files(folder: str) -> tuple[tuple[str, Path], ...]:
    paths = [path for path in (ROOT / folder).glob("*.py") if not path.stem.startswith("_")]
    return tuple((path.stem.replace("_", "-"), path) for path in paths)


@cache
def _holds_part(folder: str, word: str) -> bool:
    """A file is a part when it defines a class with a base of that folder; helpers beside it are not."""
    bases = {"passes": "(Pass)", "metrics": "(Metric)", "data": "(Source)"}
    return bases[folder] in dict(_files(folder))[word].read_text(encoding="utf-8")


def part_named(folder: str, word: str, base: type[Base]) -> type[Base]:
    """The class of that word. Raises RecipeError with the nearest legal word."""
    names = part_names(folder)
    if word not in names:
        singular = {"passes": "pass", "metrics": "metric", "data": "data source"}[folder]
        raise RecipeError(f"unknown {singular} {word!r}", fix=nearest(word, names))
    module = importlib.import_module(f"openclaw_opt.{folder}.{word.replace('-', '_')}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    assert len(found) == 1, f"{module.__name__} must define exactly one {base.__name__}"
    return found[0]
