"""What the recipe's runtime cannot hold of an int4 weight although it realises the format: sizes of blocks, signs of scales."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from openclaw_opt.graph.trt_legality import INT4_BLOCKS
from openclaw_opt.passes import Complaint
from openclaw_opt.targets import FASTEST

if TYPE_CHECKING:
    from openclaw_opt.passes.quantize import Quantize

GGUF_BLOCK = 32


def refused(options: Quantize, backend: str) -> Iterator[Complaint]:
    """What stands against int4 as asked; nothing for other formats."""
    if options.format != "int4":
        return
    block = options.block_size()
    if backend in ("gguf", FASTEST) and block != GGUF_BLOCK:
        what = f"GGUF has int4 in blocks of {GGUF_BLOCK}, not {block}"
        yield Complaint(what, "block", f"block: {GGUF_BLOCK}")
    if backend == "tensorrt" and options.calibration == "signed":
        what = "TensorRT takes no negative scale, which signed ranges have"
        yield Complaint(what, "calibration", "calibration: mse")
    if backend == "tensorrt" and block not in INT4_BLOCKS:
        near, legal = min(INT4_BLOCKS, key=lambda size: abs(size - (block or 0))), ", ".join(map(str, INT4_BLOCKS))
        yield Complaint(f"TensorRT takes int4 in blocks of {legal}, not {block}", "block", f"block: {near}")
