"""verify: is a folder what its manifest says, and does its recipe still give the same engine?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openclaw_opt.cli.options import CacheFolder, cache_folder


def verify(
    artifact: Annotated[Path, typer.Argument(help="The folder of a build.")],
    again: Annotated[
        bool, typer.Option("--rebuild", help="Build the engine again and compare it byte by byte.")
    ] = False,
    cache: CacheFolder = None,
) -> None:
    """Check every file of a build against its manifest.

    With --rebuild the engine is built again from the resolved recipe, never from the cache.
    """
    from openclaw_opt.errors import VerificationError
    from openclaw_opt.integrity import check_files

    found = check_files(artifact)
    if not found.ok:
        raise VerificationError(
            f"{len(found.lines())} files are not as they were built\n  " + "\n  ".join(found.lines()),
            where=str(artifact),
            fix="build it again, or fetch it again from where it was published",
        )
    typer.echo(f"{artifact}: {found.checked} files, {found.bytes:,} bytes, each as its manifest says")
    if again:
        _rebuild(artifact, cache)


def _rebuild(artifact: Path, cache: Path | None) -> None:
    from openclaw_opt.cli.progress import make_hooks
    from openclaw_opt.errors import VerificationError
    from openclaw_opt.rebuild import rebuild
    from openclaw_opt.store import Store

    with make_hooks(quiet=False) as hooks:
        made = rebuild(artifact.absolute(), store=Store(cache_folder(cache)), hooks=hooks)
    for one in made.files:
        typer.echo(one.line())
    for reason in made.because:
        typer.echo(f"not as it was then: {reason}")
    if made.ok:
        typer.echo("built again: the same bytes")
        return
    why = (
        "; ".join(made.because) or "nothing that decides it changed: its compiler does not repeat itself on this system"
    )
    raise VerificationError(f"built again, the engine differs: {why}", where=str(artifact))
