"""history: the trend of each number over builds, and whether one regressed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def history(
    path: Annotated[Path, typer.Argument(metavar="HISTORY", help="A *.jsonl file, or a folder of builds or reports.")],
    add: Annotated[list[Path] | None, typer.Option("--add", help="A build or report.json to add first. May be repeated.", show_default=False)] = None,
    label: Annotated[str, typer.Option(help="What to call the builds that are added, e.g. a commit.")] = "",
    metric: Annotated[list[str] | None, typer.Option("--metric", help="Judge this number only. May be repeated.", show_default=False)] = None,
    recent: Annotated[int, typer.Option(min=1, help="A change within this many newest builds decides.")] = 10,
    least: Annotated[float, typer.Option(min=0, help="Share of a level below which a change is not told.")] = 0.001,
    json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown summary.")] = False,
) -> None:  # fmt: skip
    """Show the trend of each number over builds; exit code 4 when one with a budget regressed.

    A regression is a change point (E-divisive, permutation test), not a fixed percentage.
    """
    from openclaw_opt.errors import BudgetMissed, RecipeError, nearest
    from openclaw_opt.history import add as add_to
    from openclaw_opt.history import entry_of, read_history
    from openclaw_opt.history.show import as_json, lines, markdown, verdict
    from openclaw_opt.history.trend import regressions, trends
    from openclaw_opt.report import read_report

    if add:
        add_to(path, [entry_of(read_report(one), label) for one in add])
    entries = read_history(path)
    known = {name for entry in entries for name in entry.levels}
    for name in metric or ():
        if name not in known:
            raise RecipeError(f"no build of the history measured {name!r}", where="--metric", fix=nearest(name, known))
    found = trends(entries, only=metric or (), recent=recent, least=least)
    if json:
        import json as json_

        typer.echo(json_.dumps(as_json(found), indent=1, ensure_ascii=False))
    elif as_markdown:
        typer.echo(markdown(found), nl=False)
    else:
        typer.echo("\n".join([*lines(found), verdict(found, len(entries))]))
    sys.exit(BudgetMissed.exit_code if regressions(found) else 0)
