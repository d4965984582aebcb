"""Rows of a report by name, and what the numbers in them are made of."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openclaw_opt.artifacts import Measurement
from openclaw_opt.metrics import Metric
from openclaw_opt.numerics.paired import Rows, Samples, is_binary
from openclaw_opt.parts import part_named, part_names

REFERENCE = "reference"
PERCENTILE = re.compile(r"(latency\.\w+)\.p(\d+)_ms")


@dataclass(frozen=True)
class Series:
    """Items and weights [n]; the number is Σ items / Σ weights, or exp(power · that)."""

    items: NDArray[np.float64]
    weights: NDArray[np.float64]
    power: float | None = None

    @property
    def count(self) -> int:
        return len(self.items)

    @property
    def is_share(self) -> bool:
        """A share of items: each is 0 or 1 and counts 1."""
        return self.power is None and bool((self.weights == 1).all()) and is_binary(self.items)

    @property
    def is_share_of_share(self) -> bool:
        """What is right of what was right: items and weights are 0 or 1."""
        return self.power is None and not self.is_share and is_binary(self.items) and is_binary(self.weights)

    def of(self, rows: Rows) -> Samples:
        """The number of each resample, from index rows [resamples, n]."""
        ratio = self.items[rows].sum(1) / self.weights[rows].sum(1)
        return np.asarray(ratio if self.power is None else np.exp(self.power * ratio))


def own_row(measurements: Sequence[Measurement], name: str) -> Measurement | None:
    """The artifact's row of that name, taken under no special conditions."""
    return _row(measurements, name, reference=False)


def reference_row(measurements: Sequence[Measurement], name: str) -> Measurement | None:
    """The checkpoint's."""
    return _row(measurements, name, reference=True)


def _row(measurements: Sequence[Measurement], name: str, *, reference: bool) -> Measurement | None:
    found = [m for m in measurements if m.name == name and not m.at and (m.subject == REFERENCE) is reference]
    return next((m for m in found if m.value is not None), found[0] if found else None)


def series_of(measurements: Sequence[Measurement], name: str, *, reference: bool = False) -> Series | None:
    """What the number is made of; None where its row holds no items. Perplexity is a power of bits per byte."""
    row = _row(measurements, name, reference=reference)
    if row is not None and row.items:
        return Series(np.array(row.items), np.array(row.weights))
    if name == "perplexity":
        return _power_of_bits(measurements, reference)
    return _kept_perplexity(measurements) if name == "perplexity.recovery" else None


def _power_of_bits(measurements: Sequence[Measurement], reference: bool) -> Series | None:
    bits = _row(measurements, "bits_per_byte", reference=reference)
    row = _row(measurements, "perplexity", reference=reference)
    if bits is None or row is None or not bits.items or not bits.value or not row.value:
        return None
    return Series(np.array(bits.items), np.array(bits.weights), math.log(row.value) / bits.value)


def _kept_perplexity(measurements: Sequence[Measurement]) -> Series | None:
    """exp of the difference of both sides' mean log-likelihoods."""
    ours, theirs = (_power_of_bits(measurements, reference) for reference in (False, True))
    if ours is None or theirs is None or theirs.count != ours.count:
        return None
    return Series(theirs.items - ours.items, ours.weights, ours.power)


def samples_of(measurements: Sequence[Measurement], name: str) -> tuple[NDArray[np.float64], float] | None:
    """Samples in ms of a percentile of latency, and which percentile; they stand on the p50 row of its stage."""
    match = PERCENTILE.fullmatch(name)
    row = _row(measurements, f"{match[1]}.p50_ms", reference=False) if match else None
    return (np.array(row.raw), float(match[2])) if match and row is not None and len(row.raw) > 1 else None


def metric_of(name: str) -> type[Metric] | None:
    """The metric that gives the number of that name."""
    for word in part_names("metrics"):
        cls = part_named("metrics", word, Metric)
        if name in cls.measurement_names():
            return cls
    return None
