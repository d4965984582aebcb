"""Layers from a float weight with nothing but its largest values: what an algorithm is to beat; and from a grid it was put on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from openclaw_opt.models.linear import QuantParts
from openclaw_opt.models.schemes import BLOCKED, Scheme
from openclaw_opt.numerics.grid import Grid, grid_of
from openclaw_opt.numerics.microscaling import global_scale_of, quantize_nvfp4
from openclaw_opt.numerics.quantization import channel_amax, quantize, scale_of


def plain_parts(layer: Any, scheme: Scheme, largest: float) -> QuantParts:
    """A float layer in the scheme's format with the largest values as ranges, rounded to nearest.

    Args:
        largest: absolute value among the layer's inputs.
    """
    weight, kind, block = layer.weight.detach().float(), scheme.row.kind, scheme.block
    shared, zero = None, None
    if kind in ("int4", "uint4"):
        assert block is not None
        codes, scale, zero = on_grid(weight, grid_of(weight, kind, block))
    elif kind == "nvfp4":
        assert block is not None
        made = quantize_nvfp4(weight, None, block)
        codes, scale, shared = made.packed, made.scale, made.global_scale
    else:
        amax = channel_amax(weight) if kind == "int8" or scheme.per_channel else weight.abs().amax()
        codes, scale = quantize(weight, amax, kind), scale_of(amax.flatten() if amax.ndim else amax, kind)
    step = None
    if scheme.has_ranges:
        top = torch.tensor(largest)
        step = global_scale_of(top) if kind == "nvfp4" else scale_of(top, kind)
    bias = None if layer.bias is None else layer.bias.detach().clone()
    return QuantParts(
        scheme.format,
        kind,
        codes,
        scale,
        shared,
        block if kind in BLOCKED else None,
        step,
        None,
        bias,
        zero,
        scheme.row.dynamic,
    )


def on_grid(weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, scales and zero points of a weight that lies on `grid`."""
    if grid.zero is not None:
        return grid.codes(weight, torch.uint8), grid.scale, grid.zero.to(torch.uint8)
    return grid.codes(weight, torch.int8), grid.scale.flatten() if grid.kind == "int8" else grid.scale, None
