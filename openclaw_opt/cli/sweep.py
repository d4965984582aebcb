"""sweep: one recipe at many points, one joint report, the best recipe."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openclaw_opt.cli.options import CacheFolder, ModelChoice, RecipeFile, Settings, TargetName, cache_folder, needed

if TYPE_CHECKING:
    from openclaw_opt.cli.sweep_progress import Shown
    from openclaw_opt.sweep.executor import Executor


GRID = "Values of one path: passes.quantize.format=int8,int4. `off` or 0 goes without. May be repeated."
RANGE = "With --search: passes.prune.ffn=0.05:0.3, or low:high:step. May be repeated."
SEARCH = "Try this many points, chosen by Optuna, instead of the whole grid."
OBJECTIVE = "Measurement to compare by [default: one of accuracy, one of cost]. May be repeated."
JOBS = "Points at once [default: 1 on this machine, a CPU each on Ray]."


class Where(StrEnum):
    """What runs the trials."""

    local = "local"
    ray = "ray"


def sweep(
    recipe_file: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)] = None,
    recipe: RecipeFile = None,
    grid: Annotated[list[str] | None, typer.Option("--grid", help=GRID, show_default=False)] = None,
    range_: Annotated[list[str] | None, typer.Option("--range", help=RANGE, show_default=False)] = None,
    search: Annotated[int | None, typer.Option("--search", min=1, help=SEARCH, show_default=False)] = None,
    objective: Annotated[list[str] | None, typer.Option("--objective", help=OBJECTIVE, show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    skip_illegal: Annotated[bool, typer.Option("--skip-illegal", help="Leave out points the model or target does not allow.")] = False,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help=JOBS, show_default=False)] = None,
    executor: Annotated[Where, typer.Option(help="Where points are built: processes here, or the nodes of a Ray cluster.")] = Where.local,
    set_: Settings = None,
    model: ModelChoice = None,
    target: TargetName = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write [default: sweep/RECIPE].", show_default=False)] = None,
    cache: CacheFolder = None,
    json: Annotated[bool, typer.Option("--json", help="Print sweep.json to standard output and nothing else.")] = False,
) -> None:  # fmt: skip
    """Build a recipe at many points and find the best.

    Every point is checked before any work; a sweep that was stopped goes on where it was.
    """
    from openclaw_opt.cli.sweep_progress import make_watcher, print_sweep
    from openclaw_opt.errors import RecipeError
    from openclaw_opt.store import Store
    from openclaw_opt.sweep.axes import parse
    from openclaw_opt.sweep.points import Base
    from openclaw_opt.sweep.run import Asked
    from openclaw_opt.sweep.run import sweep as run

    if recipe_file is not None and recipe is not None:
        raise RecipeError("two recipes", where=str(recipe_file), fix="name one, as the argument or with --recipe")
    axes, ranges = parse(grid or (), range_ or ())
    asked = Asked(
        base=Base(needed(recipe_file or recipe), tuple(set_ or ()), model, target),
        axes=axes,
        ranges=ranges,
        search=search,
        objectives=tuple(objective or ()),
        seed=seed,
        skip_illegal=skip_illegal,
    )
    with make_watcher(quiet=json) as watcher:
        state = run(
            asked,
            store=Store(cache_folder(cache)),
            output=output,
            executor=_executor(executor, jobs, watcher),
            watcher=watcher,
        )
    if json:
        typer.echo(state.model_dump_json(indent=1))
    else:
        print_sweep(state, (output or Path("sweep") / asked.name))
    sys.exit(state.exit_code)


def _executor(where: Where, jobs: int | None, watcher: Shown) -> Executor:
    if where is Where.ray:
        from openclaw_opt.sweep.on_ray import OnRay

        return OnRay(jobs, watcher.note)
    from openclaw_opt.sweep.local import Local

    return Local(jobs or 1, watcher.progress)
