"""report: show the report of an earlier build."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def report(
    artifact: Annotated[Path, typer.Argument(help="A build folder, or a report.json.")],
    json: Annotated[
        bool, typer.Option("--json", help="Print report.json to standard output and nothing else.")
    ] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the Markdown summary.")] = False,
) -> None:
    """Show a report again. The exit code is the build's own, so a CI step can judge a stored artifact."""
    from openclaw_opt.report import read_report

    found = read_report(artifact)
    if json:
        from openclaw_opt.report import report_json

        typer.echo(report_json(found), nl=False)
    elif as_markdown:
        from openclaw_opt.report.markdown import markdown

        typer.echo(markdown(found), nl=False)
    else:
        from openclaw_opt.cli.printing import print_result

        print_result(found)
    sys.exit(found.exit_code)
