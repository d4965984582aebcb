"""Values put into a recipe from outside of it: `--set`, and what a sweep chooses for one of its points.

A path is dotted; `passes.NAME.OPTION` and `metrics.NAME.OPTION` find the item by its name. A value `OFF` takes something out: an
option, or with `passes.NAME` the whole pass. Some options say how much a pass does (`Pass.essential`): when a change leaves a
pass with none of them, because they are OFF or 0, there is nothing left for it to do, and it is taken out too. So one axis
`passes.prune.ffn=0,0.1` holds the model without pruning. In a recipe itself a pass that does nothing stays a mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import yaml

from openclaw_opt.errors import RecipeError
from openclaw_opt.parts import part_named, part_names
from openclaw_opt.passes import Pass
from openclaw_opt.recipe_yaml import Located, Path_


class Switch(Enum):
    """Values that are no YAML: `OFF` takes out what the path names, `ON` leaves a pass as the recipe has it."""

    ON = "on"
    OFF = "off"


ON, OFF = Switch.ON, Switch.OFF
NAMED = ("passes", "metrics")
"""Sections that are lists of named items."""


@dataclass(frozen=True)
class Change:
    """One value for one dotted path; `where` is what a message points at."""

    path: str
    value: Any
    where: str


def override(located: Located, assignments: Sequence[str]) -> Located:
    """Apply `--set path.to.key=value`; the value is YAML. Mistakes are added to the result, placed at the option itself."""
    for assignment in assignments:
        where = f"--set {assignment}"
        dotted, equals, text = assignment.partition("=")
        if not equals or not dotted:
            located.mistakes.append(
                RecipeError("wants path=value", where=where, fix="--set passes.quantize.format=int4")
            )
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        _put(located, Change(dotted, value, where))
    return located


def apply(located: Located, changes: Sequence[Change]) -> Located:
    """Apply the choices of a point: all values first, then what is OFF, then passes left with nothing to do."""
    for change in changes:
        if not isinstance(change.value, Switch):
            _put(located, change)
        elif (problem := _switch_problem(located, change)) is not None:
            located.mistakes.append(problem)
    for change in changes:
        if change.value is OFF:
            _take_out(located, change.path.split("."))
    for change in changes:
        _drop_if_idle(located, change)
    return located


def _put(located: Located, change: Change) -> None:
    problem = _assign(located, change.path.split("."), change.value, change.where)
    if problem:
        located.mistakes.append(RecipeError(problem, where=change.where))


def _assign(located: Located, keys: list[str], value: Any, where: str) -> str:
    """Set one value; returns what is wrong, empty if nothing is."""
    at: Any = located.data
    path: Path_ = ()
    if keys[0] in NAMED and len(keys) > 1:
        found = _named_item(located.data, keys[0], keys[1])
        if isinstance(found, str):
            return found
        index, at = found
        path, keys = (keys[0], index, keys[1]), keys[2:]
        if not keys:
            return f"{path[2]!r} wants an option: {path[0]}.{path[2]}.OPTION=VALUE"
    for key in keys[:-1]:
        at = at.setdefault(key, {}) if isinstance(at, dict) else None
        if not isinstance(at, dict):
            return f"{key!r} is not a mapping"
        path = (*path, key)
    if isinstance(at.get(keys[-1]), list) and not isinstance(value, list):
        return f"{keys[-1]!r} is a list; give a list: {'.'.join(map(str, keys))}=[…]"
    at[keys[-1]] = value
    for old in [p for p in located.places if p[: len(path) + 1] == (*path, keys[-1])]:
        del located.places[old]
    located.places[(*path, keys[-1])] = where
    return ""


def _named_item(data: dict[str, Any], section: str, name: str) -> tuple[int, dict[str, Any]] | str:
    """Index and options of the list item of that name, made a mapping if it was a bare word."""
    items = data.get(section)
    if not isinstance(items, list):
        return f"the recipe has no list `{section}`"
    names = [_name_of(item) for item in items]
    if names.count(name) != 1:
        reason = "no" if name not in names else "more than one"
        return f"the recipe has {reason} {name!r} in `{section}`; it has: {', '.join(names)}"
    index = names.index(name)
    if not isinstance(items[index], dict) or items[index][name] is None:
        items[index] = {name: {}}
    if not isinstance(items[index][name], dict):
        return f"{name!r} has no options to set"
    return index, items[index][name]


def _name_of(item: Any) -> str:
    return str(next(iter(item), "")) if isinstance(item, dict) else str(item)


def _switch_problem(located: Located, change: Change) -> RecipeError | None:
    """`on` and `off` for something that cannot be switched."""
    keys = change.path.split(".")
    whole = len(keys) == 2 and keys[0] == "passes"
    if change.value is ON and not whole:
        return RecipeError("`on` is for whole passes", where=change.where, fix="passes.prune=off,on")
    if keys[0] not in NAMED or len(keys) < 2:
        return None if len(keys) > 1 else RecipeError(f"{keys[0]!r} cannot be off", where=change.where)
    found = _named_item(located.data, keys[0], keys[1])
    return RecipeError(found, where=change.where) if isinstance(found, str) else None


def _take_out(located: Located, keys: list[str]) -> None:
    at: Any = located.data
    path: Path_ = ()
    if keys[0] in NAMED and len(keys) > 1:
        found = _named_item(located.data, keys[0], keys[1])
        if isinstance(found, str):
            return  # it is out already, or a mistake that was told
        index, at = found
        if len(keys) == 2:
            _remove_item(located, keys[0], index)
            return
        path, keys = (keys[0], index, keys[1]), keys[2:]
    for key in keys[:-1]:
        at = at.get(key) if isinstance(at, dict) else None
        path = (*path, key)
    if isinstance(at, dict):
        at.pop(keys[-1], None)
        located.places.pop((*path, keys[-1]), None)


def _drop_if_idle(located: Located, change: Change) -> None:
    """After a change that left the pass without its last essential option; a pass that never had one is told by `check`."""
    section, _, rest = change.path.partition(".")
    word, _, option = rest.partition(".")
    if section != "passes" or word not in part_names("passes"):
        return
    essential = part_named("passes", word, Pass).essential  # type: ignore[type-abstract]
    found = _named_item(located.data, section, word)
    if option not in essential or isinstance(found, str):
        return
    index, options = found
    for name in essential:
        if name in options and _is_nothing(options[name]):
            del options[name]
    if not any(name in options for name in essential):
        _remove_item(located, section, index)


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0)


def _remove_item(located: Located, section: str, index: int) -> None:
    """Take an item out of a list; the places of those after it move up."""
    del located.data[section][index]
    moved = {}
    for path, place in located.places.items():
        at = path[1] if len(path) > 1 and path[0] == section else None
        if at == index:
            continue
        after = isinstance(at, int) and at > index
        moved[(section, int(at) - 1, *path[2:]) if after and at is not None else path] = place
    located.places.clear()
    located.places.update(moved)
