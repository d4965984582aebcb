"""What else differs between two builds, as lines: facts of them that are no measure of quality."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from openclaw_opt.records import Report

UNSAID = ("description", "budgets", "undecided", "model")
"""Keys of a recipe that do not change what is built, or are compared by content."""


def differences(a: Report, b: Report) -> tuple[str, ...]:
    """Target, recipe, versions, runtime, kernels by profile: `kernels of decode: 62 → 60`."""
    return tuple([*_facts(a, b), *_recipes(a, b), *_versions(a, b), *_kernels(a, b)])


def _facts(a: Report, b: Report) -> Iterator[str]:
    for what, old, new in (
        ("target", a.target, b.target),
        ("runtime", a.engine_tool, b.engine_tool),
        ("built on", a.machine.title, b.machine.title),
    ):
        if old != new:
            yield f"{what}: {old or 'none'} → {new or 'none'}"


def _recipes(a: Report, b: Report) -> Iterator[str]:
    old, new = (dict(_leaves(_plain(one.recipe), "")) for one in (a, b))
    for key in [*old, *(key for key in new if key not in old)]:
        if old.get(key) != new.get(key):
            yield f"recipe {key}: {old.get(key, 'not there')} → {new.get(key, 'not there')}"


def _plain(recipe: str) -> Any:
    try:
        data = yaml.safe_load(recipe)
    except yaml.YAMLError:
        return {}
    return {key: value for key, value in data.items() if key not in UNSAID} if isinstance(data, dict) else {}


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """`passes.quantize.format` and its value; a list of one-word mappings goes by those words."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and len(item) == 1 for item in value):
        value = {key: inner for item in value for key, inner in item.items()}
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _versions(a: Report, b: Report) -> Iterator[str]:
    for name in sorted(a.versions.keys() | b.versions.keys()):
        old, new = a.versions.get(name, "none"), b.versions.get(name, "none")
        if old != new:
            yield f"{name}: {old} → {new}"


def _kernels(a: Report, b: Report) -> Iterator[str]:
    old, new = ({row.profile: row.kernels for row in one.kernels} for one in (a, b))
    for profile in sorted(old.keys() | new.keys()):
        if old.get(profile) != new.get(profile):
            yield f"kernels of {profile or 'the engine'}: {old.get(profile, 'none')} → {new.get(profile, 'none')}"
