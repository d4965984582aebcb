"""doctor: what this machine can build and run, and what is missing for the rest."""

from __future__ import annotations

import typer


def doctor() -> None:
    """Say what this machine can build for, and what is missing.

    Versions of what is installed, and for each target whether its engine can be built here.
    """
    from openclaw_opt.backends.tensorrt import cannot_build
    from openclaw_opt.judge import this_machine
    from openclaw_opt.targets import TARGETS
    from openclaw_opt.versions import versions

    machine = this_machine()
    typer.echo(
        f"machine: {machine.title}, {machine.memory_bytes / 2**30:.1f} GiB, GPU: {machine.gpu}, {machine.system}, Python {machine.python}"
    )
    for name, version in versions().items():
        typer.echo(f"  {name:<24} {version}")
    typer.echo("targets:")
    typer.echo("  host       can be built here (ONNX Runtime)")
    for target in TARGETS.values():
        why = cannot_build(target)
        typer.echo(
            f"  {target.name:<10} {'can be built here (' + target.module + ')' if not why else 'up to the verified graph: ' + why}"
        )
