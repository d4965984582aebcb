"""What varies: `--grid PATH=V1,V2,…` and `--range PATH=LOW:HIGH[:STEP]`, as values. Pure.

Values of a grid are YAML, separated by commas; a list or a mapping stands in brackets. `off` takes the option (or with
`passes.NAME` the pass) out of the point, `on` leaves a pass as it is; see openclaw_opt/recipe_changes.py.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from openclaw_opt.errors import OptError, RecipeError
from openclaw_opt.recipe_changes import Change, Switch
from openclaw_opt.recipe_yaml import EXPONENT

NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
LONGEST_NAME = 96


@dataclass(frozen=True)
class Value:
    """One value of an axis, and how it was written."""

    text: str
    value: Any


@dataclass(frozen=True)
class Axis:
    """Some values of one path."""

    path: str
    values: tuple[Value, ...]
    where: str


@dataclass(frozen=True)
class Range:
    """Numbers of one path, from `low` to `high`, both included; whole numbers when all of what was written is whole."""

    path: str
    low: float
    high: float
    step: float | None
    whole: bool
    where: str

    def at(self, number: float) -> Value:
        """A number of the range as a value: four digits are kept, so that names stay short."""
        text = str(round(number)) if self.whole else f"{number:.4g}"
        return Value(text, int(text) if self.whole else float(text))


Choice = tuple[tuple[Axis | Range, Value], ...]
"""One value for each axis."""


def parse(grids: Sequence[str], ranges: Sequence[str]) -> tuple[tuple[Axis, ...], tuple[Range, ...]]:
    """The axes of the command line. Raises RecipeError with every mistake."""
    mistakes: list[OptError] = []
    axes = tuple(axis for text in grids if (axis := _axis(text, mistakes)) is not None)
    spans = tuple(span for text in ranges if (span := _range(text, mistakes)) is not None)
    seen: set[str] = set()
    every: list[Axis | Range] = [*axes, *spans]
    for one in every:
        if one.path in seen:
            mistakes.append(RecipeError(f"{one.path} is given twice", where=one.where, fix="put its values into one"))
        seen.add(one.path)
    if mistakes:
        raise RecipeError("the axes have mistakes", mistakes=mistakes)
    return axes, spans


def combinations(axes: Sequence[Axis]) -> list[Choice]:
    """The whole grid; the last axis varies fastest."""
    return [tuple(zip(axes, values, strict=True)) for values in itertools.product(*(axis.values for axis in axes))]


def changes_of(choice: Choice) -> list[Change]:
    return [Change(axis.path, value.value, axis.where) for axis, value in choice]


def labels(paths: Iterable[str]) -> dict[str, str]:
    """For each dotted path the shortest end of it that no other path has: `passes.prune.ffn` → `ffn`."""
    every = list(paths)
    return {path: _shortest(path, [other for other in every if other != path]) for path in every}


def name_of(choice: Choice) -> str:
    """A folder's name: `format=int8,ffn=0.1`. Long or odd values end in a digest, so that no two share one."""
    from openclaw_opt.store import digest

    short = labels(axis.path for axis, _ in choice)
    whole = ",".join(f"{short[axis.path]}={value.text}" for axis, value in choice)
    safe = re.sub(r"[^\w.,=+-]+", "_", whole)
    if safe == whole and len(whole) <= LONGEST_NAME:
        return whole
    return f"{safe[: LONGEST_NAME - 9]}-{digest(whole)[:8]}"


def _shortest(path: str, others: list[str]) -> str:
    parts = path.split(".")
    for n in range(1, len(parts)):
        end = ".".join(parts[-n:])
        if not any(other == end or other.endswith(f".{end}") for other in others):
            return end
    return path


def _axis(text: str, mistakes: list[OptError]) -> Axis | None:
    where = f"--grid {text}"
    path, equals, listed = text.partition("=")
    if not equals or not path.strip() or not listed.strip():
        fix = "--grid passes.quantize.format=int8,int4"
        mistakes.append(RecipeError("wants path=value,value", where=where, fix=fix))
        return None
    try:
        values = tuple(_values(listed))
    except yaml.YAMLError:
        what = "the values are no YAML: brackets or quotes do not match"
        mistakes.append(RecipeError(what, where=where, fix="--grid 'passes.quantize.keep=[head],[]'"))
        return None
    written = [value.text for value in values]
    twice = sorted({one for one in written if written.count(one) > 1})
    if twice:
        mistakes.append(RecipeError(f"value {twice[0]!r} stands twice", where=where, fix="keep one of them"))
    return Axis(path.strip(), values, where)


def _values(listed: str) -> Iterable[Value]:
    source = f"[{listed}\n]"
    node = yaml.compose(source, Loader=yaml.SafeLoader)
    assert isinstance(node, yaml.SequenceNode)
    if node.end_mark.index != len(source):
        raise yaml.YAMLError("a bracket is closed that was not opened")
    for child in node.value:
        text = source[child.start_mark.index : child.end_mark.index].strip()
        plain = isinstance(child, yaml.ScalarNode) and not child.style
        if plain and text in {switch.value for switch in Switch}:
            yield Value(text, Switch(text))
        elif plain and EXPONENT.fullmatch(text):
            yield Value(text, float(text))
        else:
            yield Value(text, yaml.safe_load(text))


def _range(text: str, mistakes: list[OptError]) -> Range | None:
    where = f"--range {text}"
    path, equals, span = text.partition("=")
    parts = [part.strip() for part in span.split(":")]
    if not equals or not path or len(parts) not in (2, 3) or not all(NUMBER.fullmatch(part) for part in parts):
        fix = "--range passes.prune.ffn=0.05:0.3, or with a step passes.quantize.block=32:128:32"
        mistakes.append(RecipeError("wants path=low:high or path=low:high:step", where=where, fix=fix))
        return None
    low, high, *step = (float(part) for part in parts)
    whole = all(part.lstrip("+-").isdigit() for part in parts)
    if low >= high or (step and not 0 < step[0] <= high - low):
        mistakes.append(RecipeError("wants low < high, and a step that fits between them", where=where))
        return None
    return Range(path.strip(), low, high, step[0] if step else None, whole, where)
