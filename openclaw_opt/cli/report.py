"""report: show the report of an earlier build, or several beside each other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openclaw_opt.records import Report


def report(
    artifacts: Annotated[list[Path], typer.Argument(help="Build folders, or report.json files; several are joined.")],
    json: Annotated[bool, typer.Option("--json", help="Print report.json to standard output and nothing else.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the Markdown summary.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write the report's files to.", show_default=False)] = None,
) -> None:  # fmt: skip
    """Show a report again, or join several into one.

    One report: the exit code is the build's own, so a CI step can judge a stored artifact. Several: a table of builds,
    the Pareto front, and apart what cannot be compared; the exit code is 0.
    """
    from openclaw_opt.report import read_report

    found = [(str(path), read_report(path)) for path in artifacts]
    if output is not None:
        _refuse_build(output)
    if len(found) > 1:
        _several(found, json, as_markdown, output)
        return
    _one(found[0][1], json, as_markdown, output)
    sys.exit(found[0][1].exit_code)


def _one(found: Report, json: bool, as_markdown: bool, output: Path | None) -> None:
    if output is not None:
        from openclaw_opt.report import write_report

        output.mkdir(parents=True, exist_ok=True)
        write_report(found, output)
    if json:
        from openclaw_opt.report import report_json

        typer.echo(report_json(found), nl=False)
    elif as_markdown:
        from openclaw_opt.report.markdown import markdown

        typer.echo(markdown(found), nl=False)
    else:
        from openclaw_opt.cli.printing import print_result

        print_result(found)


def _several(found: Sequence[tuple[str, Report]], json: bool, as_markdown: bool, output: Path | None) -> None:
    from openclaw_opt.report.joined import joined
    from openclaw_opt.report.joint import joint_json, joint_markdown, print_joint, write_joint

    title = f"{len(found)} builds"
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_joint(found, output, title)
    joint = joined(found, title)
    if json:
        typer.echo(joint_json(joint), nl=False)
    elif as_markdown:
        typer.echo(joint_markdown(joint), nl=False)
    else:
        from rich.console import Console

        print_joint(joint, Console())
        if output is not None:
            typer.echo(f"wrote {output / 'report.html'}")


def _refuse_build(output: Path) -> None:
    """A build's own report is replaced by its build alone."""
    from openclaw_opt.errors import RecipeError
    from openclaw_opt.publish import MANIFEST

    if (output / MANIFEST).exists():
        raise RecipeError("the folder holds a build", where=str(output), fix="--output another folder")
    if output.exists() and not output.is_dir():
        raise RecipeError("the output folder is a file", where=str(output), fix="--output FOLDER")
