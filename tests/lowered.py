"""Tiny checkpoints taken through the passes up to `fuse`, for the tests of what builds from a lowered graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openclaw_opt.artifacts import Graph
from openclaw_opt.passes import Work
from openclaw_opt.passes.export import Export
from openclaw_opt.passes.fuse import Fuse
from openclaw_opt.passes.load import Load
from openclaw_opt.passes.quantize import Quantize
from openclaw_opt.targets import host
from tests import tiny

ROUNDED = ("int4", "uint4")
"""Formats whose default algorithm wants calibration data: rounding to nearest wants none."""


def work(folder: Path, checkpoint: Any, backend: str = "gguf") -> Work:
    folder.mkdir()
    return Work(
        folder=folder, checkpoint=checkpoint, target=host(), backend=backend, calibration=None, data_cache=folder
    )


def graph_of(
    base: Path, family: str = "llama", format: str = "int4", backend: str = "gguf", **changes: Any
) -> tuple[Graph, Work]:
    """A tiny checkpoint, quantized but for its head (`float` for not at all) and lowered; and the work of its build."""
    checkpoint = tiny.open_tiny(tiny.write_checkpoint(base / "checkpoint", family, **changes))
    options: dict[str, Any] = {"format": format}
    if family not in ("bert", "vit"):
        options["keep"] = ("head",)
    if format in ROUNDED:
        options["algorithm"] = "rtn"
    if format == "int4":
        options["calibration"] = "signed"  # negative scales, which every runtime for a CPU must multiply rightly
    quantize = [] if format == "float" else [Quantize.model_validate(options)]
    artifact: Any = checkpoint
    for i, part in enumerate([Load(), *quantize, Export(), Fuse()]):
        artifact = part.run(artifact, work(base / str(i), checkpoint, backend)).artifact
    return artifact, work(base / "build", checkpoint, backend)
