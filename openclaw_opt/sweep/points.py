"""Points: the recipe with one value for each axis, every one read and checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from openclaw_opt.artifacts import Task
from openclaw_opt.errors import OptError, RecipeError
from openclaw_opt.plan import check_recipe
from openclaw_opt.recipe import Recipe, load_recipe, resolved_yaml
from openclaw_opt.sweep.axes import Axis, Choice, Range, changes_of, name_of

SHOWN = 3


@dataclass(frozen=True)
class Base:
    """The recipe that varies, as the command line names it."""

    file: Path
    settings: tuple[str, ...] = ()
    model: str | None = None
    target: str | None = None

    def at(self, choice: Choice) -> Recipe:
        """Raises RecipeError with all mistakes."""
        return load_recipe(
            self.file, settings=self.settings, model=self.model, target=self.target, changes=changes_of(choice)
        )


@dataclass(frozen=True)
class Point:
    """One recipe of the sweep that can be done."""

    name: str
    choices: dict[str, str]
    """Path to value as it was written."""
    recipe: Recipe
    task: Task

    @property
    def text(self) -> str:
        """The recipe with every default, as YAML."""
        return resolved_yaml(self.recipe)


@dataclass(frozen=True)
class Illegal:
    """A point that cannot be done, and why."""

    name: str
    choices: dict[str, str]
    why: OptError


@dataclass(frozen=True)
class Points:
    """What a grid comes to."""

    legal: tuple[Point, ...]
    illegal: tuple[Illegal, ...]
    same: tuple[tuple[str, str], ...]
    """(name, name of the earlier point with the same recipe): built once."""


def check_points(base: Base, choices: Sequence[Choice], *, skip_illegal: bool) -> Points:
    """Every point, read and checked.

    Raises:
        RecipeError: what no reader understands at any point (an unknown field, a word that is none); or a point that the model or
            target does not allow, unless `skip_illegal`; or no point is left.
        MachineError: data that is not on this machine.
    """
    recipes = _read(base, choices)
    legal: dict[str, Point] = {}
    illegal: list[Illegal] = []
    same: list[tuple[str, str]] = []
    for choice, recipe in zip(choices, recipes, strict=True):
        name, text = name_of(choice), resolved_yaml(recipe)
        if text in legal:
            same.append((name, legal[text].name))
            continue
        found = check_point(name, choice, recipe)
        if isinstance(found, Illegal):
            illegal.append(found)
        else:
            legal[text] = found
    if illegal and (not skip_illegal or not legal):
        raise RecipeError("points are not legal", mistakes=_told(illegal, len(choices), bool(legal)))
    return Points(tuple(legal.values()), tuple(illegal), tuple(same))


def check_point(name: str, choice: Choice, recipe: Recipe) -> Point | Illegal:
    """The point, or why this model and target do not allow it."""
    written = {axis.path: value.text for axis, value in choice}
    try:
        _, spec = check_recipe(recipe)
    except RecipeError as error:
        return Illegal(name, written, error)
    return Point(name, written, replace(recipe, name=name), spec.task)


def corners(axes: Sequence[Axis], ranges: Sequence[Range]) -> list[Axis]:
    """The axes, and both ends of each range as an axis: what is checked before a search."""
    return [*axes, *(Axis(one.path, (one.at(one.low), one.at(one.high)), one.where) for one in ranges)]


def _read(base: Base, choices: Sequence[Choice]) -> list[Recipe]:
    recipes: list[Recipe] = []
    mistakes: dict[tuple[str, str], OptError] = {}
    for choice in choices:
        try:
            recipes.append(base.at(choice))
        except RecipeError as error:
            for one in error.mistakes or (error,):
                mistakes.setdefault((one.where, one.what), one)
    if mistakes:
        raise RecipeError("the recipe or its axes have mistakes", mistakes=list(mistakes.values()))
    return recipes


def _told(illegal: Sequence[Illegal], total: int, some_legal: bool) -> list[OptError]:
    """Each reason once, with the points it hits."""
    names: dict[tuple[str, str], list[str]] = {}
    firsts: dict[tuple[str, str], OptError] = {}
    for point in illegal:
        for one in getattr(point.why, "mistakes", ()) or (point.why,):
            names.setdefault((one.where, one.what), []).append(point.name)
            firsts.setdefault((one.where, one.what), one)
    found: list[OptError] = []
    for key, one in firsts.items():
        hit = names[key]
        more = f" and {len(hit) - SHOWN} more" if len(hit) > SHOWN else ""
        what = f"{one.what} [{len(hit)} of {total} points: {'; '.join(hit[:SHOWN])}{more}]"
        found.append(RecipeError(what, where=one.where, fix=one.fix))
    if some_legal:
        found.append(
            RecipeError(f"{len(illegal)} of {total} points cannot be done", fix="--skip-illegal goes on without them")
        )
    return found
