"""inspect: what an artifact is made of, and what differs between two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    artifact: Annotated[Path, typer.Argument(help="The folder of a build.")],
    other: Annotated[
        Path | None, typer.Argument(help="A second one: show what differs in it.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Show kernels or operators, element types and memory, per profile.

    With two artifacts: what was added (+), removed (-) and changed (~) from the first to the second.
    """
    from openclaw_opt.inspection import inspect as read
    from openclaw_opt.inspection.difference import difference
    from openclaw_opt.inspection.difference import lines as changed
    from openclaw_opt.inspection.show import lines, wrapped

    found = read(artifact)
    if other is None:
        typer.echo(found.model_dump_json(indent=1) if json else "\n".join(lines(found)))
        return
    changes = difference(found, read(other))
    if json:
        import json as json_

        typer.echo(json_.dumps([change.model_dump() for change in changes], indent=1, ensure_ascii=False))
        return
    typer.echo("\n".join(cut for line in changed(changes) for cut in wrapped(line)))
