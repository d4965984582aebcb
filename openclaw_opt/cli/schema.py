"""schema: the JSON Schema of recipes, for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def schema(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; standard output otherwise.", show_default=False)] = None,
) -> None:  # fmt: skip
    """Print the JSON Schema of a recipe. Put `# yaml-language-server: $schema=FILE` on a recipe's first line."""
    import json

    from openclaw_opt.recipe_schema import recipe_schema

    text = json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
