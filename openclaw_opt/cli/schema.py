"""schema: the JSON Schemas: of recipes for editors, of reports for whoever reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer


def schema(
    what: Annotated[str, typer.Argument(help="recipe, report (one build's report.json) or joint (several).")] = "recipe",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; standard output otherwise.", show_default=False)] = None,
) -> None:  # fmt: skip
    """Print the JSON Schema of a recipe, or of report.json.

    Put `# yaml-language-server: $schema=FILE` on a recipe's first line.
    """
    import json

    from openclaw_opt.errors import RecipeError, nearest

    schemas: dict[str, Callable[[], dict[str, Any]]] = {"recipe": _recipe, "report": _report, "joint": _joint}
    if what not in schemas:
        raise RecipeError(f"no schema of {what!r}", fix=nearest(what, schemas))
    text = json.dumps(schemas[what](), indent=2, ensure_ascii=False) + "\n"
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")


def _recipe() -> dict[str, Any]:
    from openclaw_opt.recipe_schema import recipe_schema

    return recipe_schema()


def _report() -> dict[str, Any]:
    from openclaw_opt.report.schema import report_schema

    return report_schema()


def _joint() -> dict[str, Any]:
    from openclaw_opt.report.schema import joint_schema

    return joint_schema()
