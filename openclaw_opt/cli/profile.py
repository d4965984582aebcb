"""profile: where an artifact's time goes, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def profile(
    artifact: Annotated[Path, typer.Argument(help="The folder of a build: of an ONNX Runtime or GGUF engine, or built --until model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The trace, for https://ui.perfetto.dev or chrome://tracing.")] = Path("trace.json"),
) -> None:  # fmt: skip
    """Run an artifact once under its runtime's profiler: a trace that Perfetto opens, and its ten dearest layers."""
    from openclaw_opt.profiling import SHOWN, profile

    rows = profile(artifact, output)
    typer.echo(f"{output}: the whole run; the dearest of {len(rows)} layers:")
    for row in rows[:SHOWN]:
        typer.echo(f"  {row.share:6.1%}  {row.microseconds / 1e3:9.2f} ms  {row.layer}  {', '.join(row.kernels)}")
