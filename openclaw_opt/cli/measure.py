"""measure: the artifact's times, memory and size again, on this machine, appended to its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def measure(
    artifact: Annotated[Path, typer.Argument(help="The folder of a finished build.")],
    json: Annotated[bool, typer.Option("--json", help="Print the new rows as JSON and nothing else.")] = False,
) -> None:
    """Measure a finished artifact again on this machine, and append the rows to its report with this machine's name."""
    from openclaw_opt.remeasure import remeasure
    from openclaw_opt.report import numbers

    def told(_: float, text: str) -> None:
        if not json:
            typer.echo(f"measuring {text}", err=True)

    record = remeasure(artifact, told)
    if json:
        typer.echo(record.model_dump_json(indent=1))
        return
    typer.echo(f"{artifact}: measured on {record.machine.title}, appended to its report")
    for row in record.measurements:
        value = f"not measured: {row.not_measured}" if row.value is None else numbers.measured(row)
        typer.echo(f"  {row.name}{'' if row.subject == 'engine' else f' ({row.subject})'}: {value}")
