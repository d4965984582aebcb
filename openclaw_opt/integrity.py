"""Is a published folder what its manifest says? Every file against its sha256. Raises nothing for what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from openclaw_opt.errors import RecipeError
from openclaw_opt.publish import MANIFEST, foreign_files, read_manifest
from openclaw_opt.store import sha256_file


@dataclass(frozen=True)
class Findings:
    """Names relative to the folder, sorted.

    Attributes:
        checked: how many files the manifest lists.
        bytes: their size on disk.
        changed: of another content than the manifest's sha256.
        missing: listed and not there.
        foreign: there and not listed.
    """

    checked: int
    bytes: int
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    foreign: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not (self.changed or self.missing or self.foreign)

    def lines(self) -> list[str]:
        """One fact a line."""
        kinds = (("changed", self.changed), ("missing", self.missing), ("not of this build", self.foreign))
        return [f"{kind}: {name}" for kind, names in kinds for name in names]


def listed_files(folder: Path) -> Mapping[str, str]:
    """File → sha256, from the manifest. Raises RecipeError where there is none or it lists nothing."""
    manifest = read_manifest(folder)
    files = manifest.data.get("files") if manifest is not None else None
    if not isinstance(files, dict) or not files:
        raise RecipeError(
            f"the folder holds no {MANIFEST} of a build", where=str(folder), fix="give the folder of a build"
        )
    return files


def check_files(folder: Path) -> Findings:
    """Hash every file the manifest lists. Raises RecipeError where there is no manifest."""
    files = listed_files(folder)
    there = {name: folder / name for name in files if (folder / name).is_file()}
    return Findings(
        checked=len(files),
        bytes=sum(path.stat().st_size for path in there.values()),
        changed=tuple(sorted(name for name, path in there.items() if sha256_file(path) != files[name])),
        missing=tuple(sorted(files.keys() - there.keys())),
        foreign=tuple(foreign_files(folder)),
    )
