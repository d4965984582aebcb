"""YAML with places: plain data, and for every path in it the file and line it came from.

Only mappings, lists, strings, numbers, booleans and null: no tags, no dates, no merge keys, no duplicate keys. `extends:` names
another recipe relative to the file; mappings are merged key by key, everything else is replaced. Every mistake is collected.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from openclaw_opt.errors import OptError, RecipeError, nearest

Path_ = tuple[str | int, ...]
EXTENDS = "extends"
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


@dataclass
class Located:
    """Plain data and where each part of it stands, as `file:line`."""

    data: dict[str, Any]
    places: dict[Path_, str] = field(default_factory=dict)
    mistakes: list[OptError] = field(default_factory=list)

    def place(self, path: Path_) -> str:
        """`file:line` of the path, or of the nearest thing around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "")


def read_located(path: Path) -> Located:
    """The file with what it extends merged in. Raises RecipeError when it cannot be read or is not YAML."""
    return _read(path, ())


def _read(path: Path, seen: tuple[Path, ...]) -> Located:
    if path.resolve() in seen:
        chain = " → ".join(str(p.name) for p in (*seen, path))
        raise RecipeError(f"`extends` goes round in a circle: {chain}", where=str(path))
    own = _parse(path)
    parent = own.data.pop(EXTENDS, None)
    if parent is None:
        return own
    if not isinstance(parent, str):
        raise RecipeError(f"`extends` wants the path of a recipe, got {parent!r}", where=own.place((EXTENDS,)))
    file = path.parent / parent
    if not file.is_file():
        raise RecipeError(f"`extends` names {parent!r}, which is no file", where=own.place((EXTENDS,)))
    return _merged(_read(file, (*seen, path.resolve())), own)


def _parse(path: Path) -> Located:
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise RecipeError("no such recipe", where=str(path), fix=nearest(str(path), near) if near else "") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read: {error}", where=str(path)) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise RecipeError(f"is not YAML: {getattr(error, 'problem', error)}", where=f"{path}{line}") from error
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError("a recipe is a mapping: `model:`, `target:`, `passes:` …", where=f"{path}:1")
    located = Located({})
    located.data = _plain(node, (), str(path), located)
    return located


def _plain(node: yaml.Node, path: Path_, file: str, into: Located) -> Any:
    into.places.setdefault(path, f"{file}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, file, into)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, (*path, i), file, into) for i, child in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node, path, into)


def _mapping(node: yaml.MappingNode, path: Path_, file: str, into: Located) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        place = f"{file}:{key_node.start_mark.line + 1}"
        if key in found:
            into.mistakes.append(RecipeError(f"key {key!r} stands twice", where=place, fix="keep one of them"))
            continue
        into.places[(*path, key)] = place
        found[key] = _plain(value_node, (*path, key), file, into)
    return found


def _scalar(node: yaml.ScalarNode, path: Path_, into: Located) -> Any:
    tag = str(node.tag).rsplit(":", 1)[-1]
    if tag == "str" and not node.style and EXPONENT.fullmatch(str(node.value)):
        return float(str(node.value))  # YAML 1.1 reads 1e-3 as a string; nobody who writes it means one
    if tag in ("str", "timestamp"):
        return str(node.value)
    if tag in ("int", "float", "bool", "null"):
        return yaml.safe_load(str(node.value)) if node.value else None
    into.mistakes.append(
        RecipeError(f"a recipe is data; the YAML tag {node.tag!r} is not allowed", where=into.place(path))
    )
    return None


def _merged(base: Located, top: Located) -> Located:
    data, places = dict(base.data), dict(base.places)
    _merge_into(data, top.data, (), places, top)
    return Located(data, places, [*base.mistakes, *top.mistakes])


def _merge_into(
    base: dict[str, Any], top: dict[str, Any], path: Path_, places: dict[Path_, str], source: Located
) -> None:
    for key, value in top.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            base[key] = dict(base[key])
            places[here] = source.place(here)
            _merge_into(base[key], value, here, places, source)
            continue
        base[key] = value
        for old in [p for p in places if p[: len(here)] == here]:
            del places[old]
        places.update({p: place for p, place in source.places.items() if p[: len(here)] == here})
