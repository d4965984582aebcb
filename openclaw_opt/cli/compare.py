"""compare: is this build worse than that one."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Undecided(StrEnum):
    """What a number that cannot be decided counts as."""

    passes = "pass"
    fails = "fail"


def compare(
    a: Annotated[Path, typer.Argument(help="The build to hold against: a folder, or a report.json.")],
    b: Annotated[Path, typer.Argument(help="The build that may be worse.")],
    stored: Annotated[bool, typer.Option("--stored", help="Time nothing: compare what the reports hold.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to time both engines.")] = 20.0,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Of all accuracies together, and of all times.")] = 0.95,
    margin: Annotated[list[str] | None, typer.Option(help="What counts as the same: time=3%, accuracy.top1=0.01. May be repeated.", show_default=False)] = None,
    undecided: Annotated[Undecided, typer.Option(help="Whether what cannot be decided fails.")] = Undecided.passes,
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON and nothing else.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print it as Markdown.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for comparison.json, comparison.md and junit.xml.", show_default=False)] = None,
) -> None:  # fmt: skip
    """Say of each number of B whether it is better, worse, equivalent or undecided.

    Accuracy item by item, times in turns on this machine, size, memory, precision. Exit code 0: nothing is worse; 4:
    something is, or is undecided with `--undecided fail`; 2: not comparable.
    """
    from openclaw_opt.comparison import forms
    from openclaw_opt.comparison.margins import parse_margins
    from openclaw_opt.comparison.run import compare as run
    from openclaw_opt.comparison.verdicts import Options

    options = Options(confidence, parse_margins(margin or ()), "fail" if undecided is Undecided.fails else "pass")
    if not stored and a.is_dir() and b.is_dir():
        typer.echo(f"timing both engines in turns, for {seconds:g} s or a little more", err=True)
    found = run(a, b, options, seconds=None if stored else seconds)
    if output is not None:
        forms.write_comparison(found, output)
    if json:
        typer.echo(forms.comparison_json(found), nl=False)
    elif as_markdown:
        typer.echo(forms.comparison_markdown(found), nl=False)
    else:
        from rich.console import Console

        forms.print_comparison(found, Console())
        typer.echo(forms.summary(found))
    sys.exit(found.exit_code)
