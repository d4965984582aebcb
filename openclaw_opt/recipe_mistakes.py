"""Words for what is wrong with a recipe: from pydantic's errors, and in the order of the file. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from openclaw_opt.errors import OptError
from openclaw_opt.schema_words import words_of


@dataclass(frozen=True)
class Place:
    """Where pydantic found a mistake, in the words of the file."""

    keys: tuple[str | int, ...]
    """Keys and indices, without the names of union members that pydantic puts between them."""
    owner: type[BaseModel]
    """The innermost mapping on the way."""
    choice: tuple[str | int, ...] | None
    """Keys of the outermost value on the way that may be of several kinds."""

    @property
    def legal(self) -> list[str]:
        """Keys that the innermost mapping takes."""
        return list(self.owner.model_fields)


def place_of(cls: type[BaseModel], loc: Sequence[str | int]) -> Place:
    """The place of an error of `cls`, by walking its annotations beside pydantic's path."""
    keys: list[str | int] = []
    choice: tuple[str | int, ...] | None = None
    kind: Any = cls
    owner = cls
    for part in loc:
        kinds = _kinds(kind)
        if len(kinds) > 1:
            choice = tuple(keys) if choice is None else choice
            kind = next((one for one in kinds if _is_tag(str(part), one)), None)
            continue
        kind = kinds[0] if kinds else None
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            owner, info = kind, kind.model_fields.get(str(part))
            kind = info.annotation if info is not None else None
        else:
            kind = next((one for one in reversed(get_args(kind)) if one is not ...), None)
        keys.append(part)
    return Place(tuple(keys), owner, choice)


def _kinds(kind: Any) -> list[Any]:
    """The members of a union but for None; of anything else itself."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) not in (Union, UnionType):
        return [] if kind is None else [kind]
    return [inner for one in get_args(kind) if one is not type(None) for inner in _kinds(one)]


def _is_tag(tag: str, kind: Any) -> bool:
    """pydantic names a member of a union in the path of an error: `int`, `TargetChoice`, `tuple[int, ...]`."""
    name: str = getattr(get_origin(kind) or kind, "__name__", "")
    return tag.removeprefix("constrained-").partition("[")[0] == name.lower() or tag == name


def told(cls: type[BaseModel], errors: Sequence[ErrorDetails]) -> list[tuple[ErrorDetails, Place]]:
    """Errors with their places, those of a value that may be of several kinds made one.

    Where one kind got further in than the others its errors are told; else one, of the type `kinds`.
    """
    placed = [(error, place_of(cls, error["loc"])) for error in errors]
    further = {place.choice for _, place in placed if place.choice is not None and place.keys > place.choice}
    found = {}
    for error, place in placed:
        if place.choice is None or (place.choice in further and place.keys > place.choice):
            found[error["loc"]] = (error, place)
        elif place.choice not in further:
            found[place.choice] = (ErrorDetails(**{**error, "type": "kinds"}), place)
    return list(found.values())


def wanted(cls: type[BaseModel], name: str) -> str:
    """What an option may be, in words."""
    return words_of(cls.model_json_schema()["properties"][name])


def meaning_of(cls: type[BaseModel], name: str) -> str:
    from openclaw_opt.field_docs import described

    info = described(cls).model_fields.get(name)
    return f"{name}: {info.description}" if info is not None and info.description else ""


def lower_first(message: str) -> str:
    text = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return text[:1].lower() + text[1:]


def unique(mistakes: Sequence[OptError]) -> list[OptError]:
    """Each place and sentence once, in the order of the file."""
    seen = {(m.where, m.what): m for m in mistakes}
    return sorted(seen.values(), key=lambda m: _line(m.where))


def _line(where: str) -> tuple[str, int]:
    file, _, line = where.rpartition(":")
    return (file, int(line)) if line.isdigit() else (where, 0)
