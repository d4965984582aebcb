"""explain: why a build missed a budget, and what change of the recipe would bring it back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openclaw_opt.cli.options import CacheFolder, cache_folder

if TYPE_CHECKING:
    from openclaw_opt.explain.proposals import Proposal
    from openclaw_opt.explain.trial import Trial
    from openclaw_opt.records import Report


def explain(
    artifact: Annotated[Path, typer.Argument(help="The folder of a build.")],
    try_: Annotated[bool, typer.Option("--try", help="Build each proposal and judge it on calibration data.")] = False,
    most: Annotated[int, typer.Option(min=1, help="Proposals to show, and to try.")] = 6,
    cache: CacheFolder = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Say what spent each missed budget, and which recipe changes would bring it back.

    Proposals are reasoned from the report; with --try each is built, and measured on calibration data only.
    """
    from openclaw_opt.errors import RecipeError
    from openclaw_opt.explain.proposals import proposals
    from openclaw_opt.explain.trial import legal
    from openclaw_opt.publish import RESOLVED
    from openclaw_opt.recipe import load_recipe
    from openclaw_opt.report import read_report

    report, file = read_report(artifact), artifact / RESOLVED
    if not file.is_file():
        raise RecipeError(f"the folder holds no {RESOLVED}", where=str(artifact), fix="give the folder of a build")
    found = legal(proposals(report, load_recipe(file)), file)[:most]
    trials = _tried(found, file, cache, json) if try_ else []
    if json:
        _print_json(report, found, trials)
        return
    typer.echo("\n".join(_lines(report, found, trials, artifact)))


def _tried(found: tuple[Proposal, ...], file: Path, cache: Path | None, quiet: bool) -> list[Trial]:
    from openclaw_opt.cli.progress import make_hooks
    from openclaw_opt.explain.trial import tried
    from openclaw_opt.store import Store

    with make_hooks(quiet=quiet) as hooks:
        return list(tried(found, file, Store(cache_folder(cache)), hooks))


def _lines(report: Report, found: tuple[Proposal, ...], trials: list[Trial], artifact: Path) -> list[str]:
    from openclaw_opt.explain.show import advice, budget_lines, proposal_lines

    lines = budget_lines(report)
    lines += proposal_lines(found, trials)
    return [*lines, advice(report, found, trials, artifact)]


def _print_json(report: Report, found: tuple[Proposal, ...], trials: list[Trial]) -> None:
    import json as json_
    from dataclasses import asdict

    data = {
        "name": report.name,
        "budgets": [budget.model_dump(mode="json") for budget in report.budgets],
        "proposals": [asdict(one) for one in found],
        "trials": [
            {"settings": one.proposal.settings, "holds": one.holds, "failed": one.failed, "size_bytes": one.size_bytes}
            | {"budgets": [budget.model_dump(mode="json") for budget in one.budgets]}
            for one in trials
        ],
    }
    typer.echo(json_.dumps(data, indent=1, ensure_ascii=False))
