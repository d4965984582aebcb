"""list: what a recipe can name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer


def list_(
    what: Annotated[str | None, typer.Argument(help="passes, formats, targets, metrics, presets, data, recipes or advisories.", show_default=False)] = None,
    folder: Annotated[Path, typer.Option(help="Where recipes are looked for.")] = Path("recipes"),
) -> None:  # fmt: skip
    """List what a recipe can name.

    Passes, formats, targets, metrics, presets of budgets, data sources, and the recipes at hand.
    """
    from openclaw_opt.errors import RecipeError, nearest

    tables: dict[str, Callable[[], list[tuple[str, ...]]]] = {
        "passes": _passes,
        "formats": _formats,
        "targets": _targets,
        "metrics": _metrics,
        "presets": _presets,
        "data": _data,
        "recipes": lambda: _recipes(folder),
        "advisories": _advisories,
    }
    if what is not None and what not in tables:
        raise RecipeError(f"nothing to list under {what!r}", fix=nearest(what, tables))
    for name in [what] if what else list(tables):
        rows = tables[name]()
        typer.echo(f"{name}:")
        widths = [
            max((len(row[i]) for row in rows), default=0) for i in range(max((len(r) for r in rows), default=1) - 1)
        ]
        for row in rows:
            typer.echo(
                "  " + "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]).rstrip()
            )


def _passes() -> list[tuple[str, ...]]:
    from openclaw_opt.parts import part_named, part_names
    from openclaw_opt.passes import Pass

    found = [(name, part_named("passes", name, Pass)) for name in part_names("passes")]
    return [(name, f"{c.takes().__name__} → {c.gives().__name__}", c.kind, c.summary) for name, c in found]


def _formats() -> list[tuple[str, ...]]:
    from openclaw_opt.formats import FORMATS

    return [
        (
            f.name,
            f"{f.bits_per_weight():.2g} bits",
            f"SM {f.compute[0]}.{f.compute[1]}+",
            ", ".join(f.backends),
            f.title,
        )
        for f in FORMATS.values()
    ]


def _targets() -> list[tuple[str, ...]]:
    from openclaw_opt.targets import TARGETS, formats_of, host

    rows = [*TARGETS.values(), host()]
    return [
        (
            t.name,
            t.sm if t.is_gpu else "cpu",
            f"{t.memory / 1e9:.0f} GB",
            f"{t.bandwidth / 1e9:.0f} GB/s" if t.bandwidth else "-",
            t.module or t.backend,
            ", ".join(formats_of(t, t.backend)),
        )
        for t in rows
    ]


def _metrics() -> list[tuple[str, ...]]:
    from openclaw_opt.metrics import Metric
    from openclaw_opt.parts import part_named, part_names

    return [
        (name, ", ".join(part_named("metrics", name, Metric)().measurement_names())) for name in part_names("metrics")
    ]  # type: ignore[type-abstract]


def _presets() -> list[tuple[str, ...]]:
    from openclaw_opt.presets import PRESETS

    return [(row.name, row.title) for row in PRESETS.values()]


def _advisories() -> list[tuple[str, ...]]:
    from openclaw_opt.advisories import ADVISORIES

    return [(row.id, row.module, _versions(row.since, row.until), f"{row.what} ({row.source})") for row in ADVISORIES]


def _versions(since: str, until: str) -> str:
    return f"{since or 'first'} to {until or 'newest'}" if since or until else "all"


def _data() -> list[tuple[str, ...]]:
    from openclaw_opt.data import source_class, source_names

    return [(name, (source_class(name).__doc__ or "").strip().splitlines()[0]) for name in source_names()]


def _recipes(folder: Path) -> list[tuple[str, ...]]:
    from openclaw_opt.recipe_yaml import read_located

    return [(str(path), str(read_located(path).data.get("description", ""))) for path in sorted(folder.glob("*.yaml"))]
