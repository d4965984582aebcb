"""build: do the recipe, or finish an artifact on the GPU host."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from openclaw_opt.cli.options import CacheFolder, ModelChoice, RecipeFile, Settings, TargetName, cache_folder, needed


def build(
    artifact: Annotated[Path | None, typer.Argument(help="A folder that an earlier build left unfinished; with --resume.", show_default=False)] = None,
    recipe: RecipeFile = None,
    until: Annotated[str | None, typer.Option(help="Stop after the last pass that gives a model, graph or engine.", show_default=False)] = None,
    set_: Settings = None,
    model: ModelChoice = None,
    target: TargetName = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write [default: build/RECIPE].", show_default=False)] = None,
    baseline: Annotated[Path | None, typer.Option(help="Folder or report.json that budgets `against: baseline` compare with.", show_default=False)] = None,
    history: Annotated[Path | None, typer.Option(help="History (file or folder) whose builds the report shows too.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Finish the engine of ARTIFACT on this machine.")] = False,
    cache: CacheFolder = None,
    json: Annotated[bool, typer.Option("--json", help="Print report.json to standard output and nothing else.")] = False,
) -> None:  # fmt: skip
    """Turn a checkpoint into an engine and a report, as the recipe says."""
    from openclaw_opt.cli.progress import make_hooks
    from openclaw_opt.errors import RecipeError
    from openclaw_opt.pipeline import build as run
    from openclaw_opt.recipe import load_recipe
    from openclaw_opt.store import Store

    store = Store(cache_folder(cache))
    with make_hooks(quiet=json) as hooks:
        if resume:
            from openclaw_opt.resume import finish

            if artifact is None or recipe is not None:
                raise RecipeError(
                    "--resume wants the folder of an unfinished build",
                    fix="openclaw-opt build build/int8-h100 --resume",
                )
            if baseline is not None:
                raise RecipeError(
                    "--resume keeps the baseline that the build began with", where=f"--baseline {baseline}"
                )
            if history is not None:
                raise RecipeError(
                    "--resume keeps the earlier builds that the build began with", where=f"--history {history}"
                )
            report = finish(artifact, store=store, hooks=hooks)
        else:
            if artifact is not None:
                raise RecipeError(
                    f"unexpected argument {str(artifact)!r}",
                    fix=f"openclaw-opt build --recipe {artifact}, or add --resume to finish an artifact",
                )
            made = load_recipe(needed(recipe), settings=set_ or (), model=model, target=target)
            report = run(made, store=store, output=output, until=until, baseline=baseline, history=history, hooks=hooks)
    _print(report, json)
    sys.exit(report.exit_code)


def _print(report: object, json: bool) -> None:
    from openclaw_opt.cli.printing import print_result
    from openclaw_opt.records import Report
    from openclaw_opt.report import report_json

    assert isinstance(report, Report)
    if json:
        typer.echo(report_json(report), nl=False)
    else:
        print_result(report)
