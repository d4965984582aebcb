"""Our own algorithms: GPTQ with descent, clip search, zero points, signed ranges, rounding to nearest.

Each finds a grid for the weight and rounds the weight to it, in place: a float layer with that weight is what ours is proven
against. On layers that nvidia-modelopt has put its quantizers on (it found ranges or factors of their inputs), its quantizer is
set to that grid, which leaves such a weight as it is, or off where it has none such (zero points, negative scales).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openclaw_opt.errors import RecipeError
from openclaw_opt.models.calibrate import Calibration, Progress
from openclaw_opt.models.layerwise import each_gram
from openclaw_opt.models.modelopt import factors_of, has_quantizers
from openclaw_opt.models.schemes import Scheme
from openclaw_opt.numerics import fake_quant
from openclaw_opt.numerics.clipping import block_grams, clipped_grid
from openclaw_opt.numerics.fitting import Options, fitted
from openclaw_opt.numerics.gptq import NotPositive
from openclaw_opt.numerics.grid import AFFINE, Grid, grid_of, signed_grid
from openclaw_opt.numerics.quantization import TOP


@torch.no_grad()
def refined(
    module: nn.Module,
    names: Sequence[str],
    scheme: Scheme,
    calibration: Calibration | None,
    progress: Progress,
    held: Collection[str] = (),
) -> dict[str, Grid]:
    """Round the weights of the layers in `names` as the scheme asks, in place.

    Args:
        held: layers whose zeros stay zeros; rounding to nearest keeps them by itself.

    Returns:
        The grid of each layer; empty where modelopt's own rounding is what was asked.

    Raises:
        RecipeError: calibration inputs of a layer hold no usable numbers; it is named.
    """
    grids: dict[str, Grid] = {}
    if scheme.uses_inputs:
        assert calibration is not None

        def change(name: str, gram: Tensor) -> None:
            grids[name] = _with_inputs(name, module.get_submodule(name), scheme, gram, hold=name in held)

        each_gram(module, names, calibration, change, progress)
    elif scheme.row.kind == AFFINE or scheme.clips_weights or scheme.signs_scales:
        for name in names:
            grids[name] = _alone(module.get_submodule(name), scheme)
    return grids


@torch.no_grad()
def round_to_nearest(module: nn.Module, names: Sequence[str], scheme: Scheme) -> None:
    """Give the layers in `names`, in place, what rounding to nearest makes of their weights."""
    for name in names:
        weight: Any = module.get_submodule(name).weight
        weight.copy_(fake_quant.rounded(weight, scheme.row.kind, scheme.block))


def _with_inputs(name: str, layer: Any, scheme: Scheme, gram: Tensor, *, hold: bool) -> Grid:
    factors = factors_of(layer)
    if factors is not None:
        spread = factors.float().flatten()
        gram.mul_(spread[:, None]).mul_(spread)
    weight = layer.weight.float()
    block = scheme.block or weight.shape[1]
    if not scheme.compensates:
        grid = clipped_grid(weight, scheme.row.kind, block, block_grams(gram, block))
        return _put(layer, grid, grid.rounded(weight))
    options = Options(scheme.row.kind, block, scheme.damping, scheme.act_order, scheme.sweeps)
    try:
        made = fitted(weight, gram, options, zeros=weight == 0 if hold else None)
    except NotPositive as error:
        raise RecipeError(f"gptq: {error}", where=name, fix="more calibration samples, or algorithm: awq") from error
    return _put(layer, made.grid, made.values)


def _alone(layer: Any, scheme: Scheme) -> Grid:
    weight = layer.weight.float()
    block = scheme.block or weight.shape[1]
    grid = _grid(weight, scheme.row.kind, block, scheme)
    return _put(layer, grid, grid.rounded(weight))


def _grid(weight: Tensor, kind: str, block: int, scheme: Scheme) -> Grid:
    if scheme.signs_scales:
        return signed_grid(weight, block)
    return clipped_grid(weight, kind, block) if scheme.clips_weights else grid_of(weight, kind, block)


def _put(layer: Any, grid: Grid, values: Tensor) -> Grid:
    """Give the layer the rounded weight, and modelopt's quantizer, if it has one, the grid it lies on."""
    layer.weight.copy_(values.to(layer.weight.dtype))
    if not has_quantizers(layer):
        return grid
    if grid.zero is not None or grid.is_signed:
        layer.weight_quantizer.disable()
        return grid
    amax = layer.weight_quantizer.amax
    layer.weight_quantizer.amax = (grid.scale * TOP[grid.kind]).reshape(amax.shape).to(amax.dtype)
    return grid
