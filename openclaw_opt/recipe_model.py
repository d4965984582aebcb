"""`model:` of a recipe → a folder or a hub id."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from openclaw_opt.errors import RecipeError

PACKAGE_PREFIX = "package:"


def resolve_model(value: str, base: Path) -> str:
    """`./…`, `../…`, `/…`, `~/…` → an absolute path; `package:NAME/SUB` → a folder of an installed package; else a hub id."""
    if value.startswith(PACKAGE_PREFIX):
        return _package_folder(value)
    if value.startswith((".", "/", "~")):
        return str((base / Path(value).expanduser()).resolve())
    return value


def _package_folder(value: str) -> str:
    package, _, sub = value.removeprefix(PACKAGE_PREFIX).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError(
            f"no installed Python package {package!r} holds a checkpoint",
            fix="pip install it, or name a folder with --model",
        )
    return str(Path(spec.submodule_search_locations[0]) / sub)
