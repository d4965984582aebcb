"""init: a first recipe for a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or hub id.")],
    target: Annotated[str, typer.Option(help="A row of `openclaw-opt list targets`.")] = "host",
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("recipe.yaml"),
) -> None:
    """Write a first recipe for a checkpoint and a target.

    With the fastest format the target has, and a budget to edit.
    """
    from openclaw_opt.errors import RecipeError
    from openclaw_opt.starter import starter_recipe

    if output.exists():
        raise RecipeError("the file exists", where=str(output), fix="--output another file")
    text = starter_recipe(model, target, output)
    output.write_text(text, encoding="utf-8")
    typer.echo(f"wrote {output}; next: openclaw-opt check --recipe {output}")
