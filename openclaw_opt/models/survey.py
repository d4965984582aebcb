"""One run of calibration data through the float model: what reaches each layer, and whether it is a number at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openclaw_opt.errors import RecipeError
from openclaw_opt.models.calibrate import Calibration, Progress, run_batches, watched
from openclaw_opt.numerics.finite import is_finite
from openclaw_opt.numerics.histogram import Histogram, range_of
from openclaw_opt.numerics.pieces import pieces


@dataclass
class Reach:
    """What one layer saw."""

    rows: int = 0
    """Vectors it multiplied; 0 if it was never called."""
    largest: float = 0.0
    """Largest absolute value of its inputs."""


def broken_weights(module: nn.Module, names: Sequence[str]) -> list[RecipeError]:
    """One for each weight or bias of the layers in `names` that holds NaN or infinity."""
    wrong = []
    for name in names:
        for part, value in module.get_submodule(name).named_parameters(recurse=False):
            count = sum(_not_finite(one) for (one,) in pieces(value))
            if count:
                what = f"{count} of {value.numel()} numbers are NaN or infinite"
                wrong.append(RecipeError(what, where=f"{name}.{part}", fix="check the checkpoint, or keep this layer"))
    return wrong


def _not_finite(x: Tensor) -> int:
    return 0 if is_finite(x) else int((~x.isfinite()).sum())


def refuse_broken(wrong: Sequence[RecipeError]) -> None:
    """RecipeError for what `broken_weights` found; every such layer is named."""
    if wrong:
        raise wrong[0] if len(wrong) == 1 else RecipeError(f"{len(wrong)} damaged weights", mistakes=[*wrong])


@torch.no_grad()
def survey(
    module: nn.Module, names: Sequence[str], calibration: Calibration, progress: Progress
) -> Mapping[str, Reach]:
    """Run all batches.

    Raises:
        RecipeError: the input of a layer in `names` holds NaN or infinity; the first such layer is named.
    """
    reached = {name: Reach() for name in names}

    def seen(name: str, x: Tensor, y: Tensor) -> None:
        low, high = x.aminmax()
        largest = max(-float(low), float(high))
        if not largest < float("inf"):  # NaN compares false as well
            raise RecipeError(
                "its input holds NaN or infinity on calibration data",
                where=name,
                fix="check the layers before it; a checkpoint that overflows cannot be calibrated",
            )
        reached[name].rows += y.numel() // y.shape[1 if y.ndim == 4 else -1]
        reached[name].largest = max(reached[name].largest, largest)

    with watched(module, names, seen):
        run_batches(module, calibration, progress, "looking at each layer's inputs")
    return reached


@torch.no_grad()
def ranges(
    module: nn.Module,
    factors: Mapping[str, Tensor | None],
    tops: Mapping[str, float],
    calibration: Calibration,
    choice: tuple[str, str, float],
    progress: Progress,
) -> dict[str, float]:
    """The range of each layer's input by histogram.

    Args:
        factors: layer → what its input is multiplied with first, [K], or None.
        tops: layer → largest absolute value of its input after that.
        choice: method, kind and percentile, as `numerics.histogram.range_of` takes them.
    """
    histograms = {name: Histogram(top) for name, top in tops.items() if top > 0}

    def seen(name: str, x: Tensor, y: Tensor) -> None:
        factor = factors[name]
        histograms[name].add(x if factor is None else x * factor)

    with watched(module, list(histograms), seen):
        run_batches(module, calibration, progress, f"{choice[0]} of each layer's inputs")
    return {name: range_of(histogram, *choice) for name, histogram in histograms.items()}
