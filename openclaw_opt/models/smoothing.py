"""SmoothQuant for inputs with a scale a token, which nvidia-modelopt's refuses: on layers that have its quantizers already.

Factors go into the layer's quantizer, as modelopt's own do, and the weight is divided by them, so that what follows (GPTQ, the
proof, folding) finds what it finds after modelopt's SmoothQuant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openclaw_opt.models.calibrate import Calibration, Progress, run_batches, watched
from openclaw_opt.models.layerwise import weights_unquantized
from openclaw_opt.numerics.quantization import channel_amax
from openclaw_opt.numerics.smoothing import smoothing_factors


@torch.no_grad()
def smooth(
    module: nn.Module, names: Sequence[str], alpha: float, calibration: Calibration, progress: Progress
) -> dict[str, Tensor]:
    """Give the layers in `names` their factors, in place.

    Returns:
        The factors by layer, float32 [inputs].
    """
    largest: dict[str, Tensor] = {}

    def seen(name: str, x: Tensor, y: Tensor) -> None:
        found = x.detach().abs().flatten(0, -2).amax(0)
        largest[name] = torch.maximum(largest[name], found) if name in largest else found

    layers: dict[str, Any] = {name: module.get_submodule(name) for name in names}
    for layer in layers.values():
        layer.input_quantizer.disable()
    with watched(module, names, seen), weights_unquantized(layers.values()):
        run_batches(module, calibration, progress, "largest inputs")
    made = {}
    for name, layer in layers.items():
        layer.input_quantizer.enable()
        made[name] = smoothing_factors(largest[name], layer.weight.abs().amax(0), alpha)
        _put(layer, made[name].to(layer.weight.dtype))
    return made


def _put(layer: Any, factors: Tensor) -> None:
    layer.input_quantizer._enable_pre_quant_scale = True
    layer.input_quantizer.pre_quant_scale = factors
    layer.weight.copy_(layer.weight / factors)
    layer.weight_quantizer.amax = channel_amax(layer.weight)
