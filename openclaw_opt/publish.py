"""The output folder: locked while a build writes it, replaced whole or not at all, and never somebody else's.

A build is assembled beside the folder and takes its place by renaming. A folder with files that no manifest of ours lists
is left alone: the build stops before any work.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from openclaw_opt.artifacts import Artifact
from openclaw_opt.errors import MachineError, RecipeError
from openclaw_opt.recipe import resolved_yaml
from openclaw_opt.records import PassRecord, Report
from openclaw_opt.store import DONE, Store, sha256_file

if TYPE_CHECKING:
    from openclaw_opt.plan import Plan, Step

MANIFEST = "manifest.json"
RESOLVED = "recipe.resolved.yaml"
SHOWN = 3


@dataclass(frozen=True)
class Manifest:
    """manifest.json: what went in, what came out, by which tools, on which machine."""

    data: dict[str, Any]

    @classmethod
    def of(cls, plan: Plan, steps: Sequence[Step], records: Sequence[PassRecord], report: Report) -> Manifest:
        """Everything but the files, which are hashed when they are in place."""
        passes = [
            {"pass": step.part.word, "key": step.key, "ingredients": step.ingredients, "cached": record.cached}
            | {"seconds": record.seconds, "peak_bytes": record.peak_bytes}
            for step, record in zip(steps, records, strict=True)
        ]
        return cls(
            {
                "name": report.name,
                "started": report.started,
                "inputs": plan.checkpoint.files,
                "model": plan.recipe.model,
                "passes": passes,
                "machine": report.machine.model_dump(),
                "versions": report.versions,
                "data": report.data,
                "recipe": resolved_yaml(plan.recipe),
            }
        )

    def ingredients_of(self, step: Step) -> Mapping[str, Any] | None:
        """What decided the pass of the same position and name in the last build."""
        passes = self.data.get("passes", [])
        if step.index < len(passes) and passes[step.index]["pass"] == step.part.word:
            found: Mapping[str, Any] = passes[step.index]["ingredients"]
            return found
        return None


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of the last build into the folder, if there was one."""
    file = folder / MANIFEST
    try:
        return Manifest(json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this build. Raises MachineError when another build has it; a dead one's lock is no lock.

    What was made for the lock goes again where nothing was built: a refused build leaves no trace.
    """
    made = [path for path in folder.parents if not path.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{folder.name}.lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise MachineError(
            "another build is writing this folder",
            where=str(folder),
            fix="wait for it, or give this one another --output",
        ) from None
    except OSError as error:
        raise MachineError(
            f"the output folder cannot be written: {error.strerror}", where=str(folder), fix="--output FOLDER"
        ) from error
    try:
        yield
    finally:
        if not folder.exists() and not _old(folder).exists():
            Path(lock.lock_file).unlink(missing_ok=True)  # while we hold it: who comes later makes another
        lock.release()
        with contextlib.suppress(OSError):  # another build is at work in there
            for path in made:
                path.rmdir()


def prepare(folder: Path) -> None:
    """Refuse what cannot be written and what is not ours, before any work."""
    if _old(folder).is_dir() and not folder.exists():
        _old(folder).rename(folder)  # the last build was killed between its two renames
    if folder.exists() and not folder.is_dir():
        raise RecipeError("the output folder is a file", where=str(folder), fix="--output FOLDER")
    foreign = foreign_files(folder) if folder.is_dir() else []
    if foreign:
        more = f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else ""
        raise RecipeError(
            f"the output folder holds files that no build of ours wrote: {', '.join(foreign[:SHOWN])}{more}",
            where=str(folder),
            fix="move them away, or give another --output",
        )
    probe = folder if folder.is_dir() else folder.parent
    if not os.access(probe, os.W_OK | os.X_OK):
        raise MachineError(
            "the output folder cannot be written: permission denied", where=str(probe), fix="--output FOLDER"
        )
    for left in folder.parent.glob(f".{folder.name}.part-*"):
        shutil.rmtree(left, ignore_errors=True)  # of a build that was killed: we hold the lock
    shutil.rmtree(_old(folder), ignore_errors=True)


def foreign_files(folder: Path) -> list[str]:
    """Files that the folder's manifest does not list, relative, sorted."""
    manifest = read_manifest(folder)
    ours = {MANIFEST, *(manifest.data.get("files", {}) if manifest else {})}
    return sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and str(p.relative_to(folder)) not in ours
    )


def publish(folder: Path, report: Report, artifact: Artifact, manifest: Manifest, store: Store | None = None) -> None:
    """Assemble the build beside the folder and put it in its place."""
    from openclaw_opt.report import write_report

    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.part-", dir=folder.parent))
    try:
        _take(artifact, part)
        (part / RESOLVED).write_text(manifest.data["recipe"], encoding="utf-8")
        write_report(report, part, store)
        files = {str(p.relative_to(part)): sha256_file(p) for p in sorted(part.rglob("*")) if p.is_file()}
        (part / MANIFEST).write_text(
            json.dumps(manifest.data | {"files": files}, indent=1, ensure_ascii=False), encoding="utf-8"
        )
        part.chmod(0o755)
        _swap(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _take(artifact: Artifact, part: Path) -> None:
    """Copy the artifact's files, its assets beside them."""
    for path in sorted(artifact.folder.rglob("*")):
        if not path.is_file() or path.name == DONE:
            continue
        relative = path.relative_to(artifact.folder)
        to = part / (relative.relative_to("assets") if relative.parts[0] == "assets" else relative)
        to.parent.mkdir(parents=True, exist_ok=True)
        if not to.exists():
            shutil.copyfile(path, to)  # never a hard link: a user may edit the copy


def _swap(part: Path, folder: Path) -> None:
    if folder.is_dir():
        folder.rename(_old(folder))
    part.rename(folder)
    shutil.rmtree(_old(folder), ignore_errors=True)


def _old(folder: Path) -> Path:
    """Where the last build waits while the new one takes its place."""
    return folder.with_name(f".{folder.name}.old")
