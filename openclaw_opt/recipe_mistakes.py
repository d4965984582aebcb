"""Words for what is wrong with a recipe: from pydantic's errors, and in the order of the file. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from openclaw_opt.errors import OptError


def union_member(part: Any) -> bool:
    """pydantic names the member of a union in the path of an error: `str`, `TargetChoice`, `dict[str,any]`."""
    return isinstance(part, str) and (part in ("str", "TargetChoice", "int", "float", "bool") or "[" in part)


def keys_at(cls: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    for part in loc:
        nested = cls.model_fields[part].annotation if part in cls.model_fields else None
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            cls = nested
    return [info.alias or name for name, info in cls.model_fields.items()]


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
