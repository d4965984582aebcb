"""FFN widths of every layer that meet a goal: evenly by one fraction, or globally by what each block of channels is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

from openclaw_opt.models.spec import Sized

Allocation = Literal["even", "sensitivity"]
Meets = Callable[[Sized], bool]
ROUNDING = 1e-9  # (1 - 0.3) * 10 is 7.000000000000001 in floating point, and means 7


def remaining(count: int, fraction: float | None, multiple: int = 1) -> int:
    """What stays of `count` parts: the least multiple not below (1 − fraction)·count, so that no more goes than was asked."""
    if fraction is None:
        return count
    return min(count, max(1, ceil((1 - fraction) * count / multiple - ROUNDING)) * multiple)


def with_widths(spec: Sized, widths: Sequence[int]) -> Sized:
    """The spec with these FFN widths."""
    layers = (layer.model_copy(update={"ffn": width}) for layer, width in zip(spec.layers, widths, strict=True))
    return spec.model_copy(update={"layers": tuple(layers)})


def least(spec: Sized, multiple: int) -> Sized:
    """The narrowest that may become of it."""
    return with_widths(spec, [min(layer.ffn, multiple) for layer in spec.layers])


def even(spec: Sized, multiple: int, meets: Meets) -> list[int] | None:
    """Widths by the smallest common fraction that meets the goal; None where none does."""
    counts = [layer.ffn for layer in spec.layers]
    steps = sorted({1 - kept / count for count in counts for kept in range(multiple, count, multiple)})
    for fraction in (0.0, *steps):
        widths = [remaining(count, fraction, multiple) for count in counts]
        if meets(with_widths(spec, widths)):
            return widths
    return None


@dataclass(frozen=True, order=True)
class Step:
    """One layer from a width to the next smaller one: what is lost a channel, the layer, and how many channels are gone then."""

    loss: float
    layer: int
    gone: int


def by_sensitivity(spec: Sized, multiple: int, meets: Meets, scores: Sequence[Sequence[float]]) -> list[int] | None:
    """Widths that lose least: the steps with the least loss a channel go first, over all layers, until the goal is met.

    Every channel costs the same, and within a layer each step loses at least as much a channel as the one before, so no
    other choice of as many channels loses less.

    Args:
        scores: of each layer's channels, comparable between layers.

    Returns:
        None where the narrowest does not meet the goal.
    """
    widths = [layer.ffn for layer in spec.layers]
    steps = sorted(step for layer, values in enumerate(scores) for step in _steps(layer, sorted(values), multiple))
    for step in (None, *steps):
        if step is not None:
            widths[step.layer] = spec.layers[step.layer].ffn - step.gone
        if meets(with_widths(spec, widths)):
            return widths
    return None


def _steps(layer: int, ascending: Sequence[float], multiple: int) -> Iterator[Step]:
    """From all channels down to one multiple; the first step may be a part of one."""
    gone, count, last = 0, len(ascending), 0.0
    while count - gone > multiple:
        next_width = (count - gone - 1) // multiple * multiple
        taken = ascending[gone : count - next_width]
        gone = count - next_width
        last = max(last, sum(taken) / len(taken))  # rounding must not turn the order of a layer's steps over
        yield Step(last, layer, gone)
