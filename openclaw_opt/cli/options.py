"""Options that several verbs share, and where the cache is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path | None, typer.Option("--recipe", "-r", help="The recipe, a YAML file.", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override one value: passes.quantize.format=int4, target=l4. May be repeated.", show_default=False
    ),
]
ModelChoice = Annotated[
    str | None, typer.Option("--model", help="Checkpoint folder or hub id; replaces the recipe's.", show_default=False)
]
TargetName = Annotated[
    str | None, typer.Option("--target", help="What to build for; replaces the recipe's.", show_default=False)
]
CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache", help="Folder of cached pass results [default: ~/.cache/openclaw-opt].", show_default=False),
]


def cache_folder(given: Path | None) -> Path:
    """The folder given, or the user's cache folder (XDG)."""
    if given is not None:
        return given.absolute()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "openclaw-opt"


def needed(recipe: Path | None) -> Path:
    """The recipe, or a usage error that says what to write."""
    if recipe is not None:
        return recipe
    from openclaw_opt.errors import RecipeError

    raise RecipeError(
        "no recipe", fix="openclaw-opt build --recipe recipes/int8-cpu.yaml; `openclaw-opt init` writes one"
    )
