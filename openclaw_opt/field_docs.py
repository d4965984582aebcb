"""Meanings of options: the string under a field of a part becomes its description, when somebody asks.

pydantic can do this when a class is made, but it reads every source file again to do so, which `check` has no time for.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from typing import TypeVar, get_args

from pydantic import BaseModel

Model = TypeVar("Model", bound=BaseModel)


def described(cls: type[Model]) -> type[Model]:
    """The class, every field with its description, and those of mappings in it; its schema then has them too."""
    for inner in nested(cls).values():
        described(inner)
    missing = {name: field for name, field in cls.model_fields.items() if field.description is None}
    for name, field in missing.items():
        field.description = _docs(cls).get(name)
    if missing:
        cls.model_rebuild(force=True)
    return cls


def nested(cls: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Fields that are mappings with fields of their own."""
    kinds = {name: (field.annotation, *get_args(field.annotation)) for name, field in cls.model_fields.items()}
    return {
        name: kind
        for name, every in kinds.items()
        for kind in every
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    }


def _docs(cls: type[BaseModel]) -> dict[str, str]:
    """Field to the string under it, bases first."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            found |= _own_docs(base)
    return found


@cache
def _own_docs(cls: type[BaseModel]) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    return {
        before.target.id: inspect.cleandoc(after.value.value)
        for before, after in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(before, ast.AnnAssign)
        and isinstance(before.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }
