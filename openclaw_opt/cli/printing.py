"""How a report is printed: tables on a terminal, plain lines where there is none (a CI log, a pipe, a file)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from openclaw_opt.records import Report


def print_result(report: Report) -> None:
    """The whole result; the last line says how it went and what to do next."""
    from openclaw_opt.report.plain import plain_lines
    from openclaw_opt.report.terminal import print_report, summary_line

    if not sys.stdout.isatty():
        typer.echo("\n".join(plain_lines(report)))
        return
    from rich.console import Console

    print_report(report, Console())
    typer.echo(summary_line(report))
