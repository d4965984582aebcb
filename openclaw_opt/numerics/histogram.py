"""Ranges of activations from a histogram of their sizes: percentile, least squared error, least divergence.

The histogram has BINS equal bins of |x| from 0 to the largest value seen; data streams through it.

    percentile  the edge above which the rest of the values lie
    mse         the range a for which Σ count·(c − q_a(c))² over the bins' middles c is least, q_a rounding to the format with range a
    entropy     int8: the range for which KL(P ‖ Q) is least. P is the histogram up to the range with all beyond it added to the
                last bin; Q is P's part within the range merged into 128 levels and spread evenly over the bins that are not
                empty. Bin 0 counts as much as bin 1: zeros cost nothing in any range

Ranges below LEAST of the BINS are not tried. Agrees with nvidia-modelopt's histogram calibrator,
but for a percentile's bin, of which that takes the lower edge.
Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017 (entropy); https://arxiv.org/abs/2004.09602 (all three).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openclaw_opt.numerics.quantization import dequantize, quantize, scale_of

BINS = 2048
LEAST = 128
"""The first range tried, in bins: as many as int8 has positive levels."""
LEVELS = 128


class Histogram:
    """Counts of |x| in BINS bins of equal width from 0 to `top`; what lies beyond `top` counts into the last bin."""

    def __init__(self, top: float) -> None:
        self.top = top
        self.counts: NDArray[np.float64] = np.zeros(BINS, np.float64)

    @property
    def edges(self) -> NDArray[np.float64]:
        """BINS + 1 numbers."""
        return np.linspace(0.0, self.top, BINS + 1)

    def add(self, x: Tensor) -> None:
        """Any shape, any float."""
        size = x.float().abs().clamp_max(self.top)
        self.counts += torch.histc(size, BINS, 0.0, self.top).numpy()


def range_of(histogram: Histogram, method: str, kind: str, percentile: float) -> float:
    """The range that `method` (percentile, mse, entropy) finds for `kind` (int8, fp8); `top` for an empty histogram.

    Args:
        percentile: of the values that lie within the range, above 0 and at most 100; for `percentile` alone.
    """
    if not histogram.counts.any():
        return histogram.top
    if method == "percentile":
        return percentile_range(histogram, percentile)
    return mse_range(histogram, kind) if method == "mse" else entropy_range(histogram)


def percentile_range(histogram: Histogram, percentile: float) -> float:
    """The first edge that `percentile` of the values lie below."""
    shares = np.cumsum(histogram.counts / histogram.counts.sum())
    return float(histogram.edges[min(int(np.searchsorted(shares, percentile / 100)) + 1, BINS)])


def mse_range(histogram: Histogram, kind: str) -> float:
    """The bin's middle that loses least when it is the range."""
    edges = torch.from_numpy(histogram.edges)
    middles = ((edges[1:] + edges[:-1]) / 2).float()
    counts = torch.from_numpy(histogram.counts).float()
    ranges = middles[LEAST:, None]
    back = dequantize(quantize(middles, ranges, kind), scale_of(ranges, kind))
    return float(ranges[int(((back - middles).square() * counts).sum(1).argmin()), 0])


def entropy_range(histogram: Histogram) -> float:
    """The edge with the least divergence; of several, the widest."""
    counts = histogram.counts.copy()
    counts[0] = counts[1]
    divergences = np.array([_divergence(counts, bins) for bins in range(LEAST, BINS + 1)])
    widest = len(divergences) - 1 - int(np.argmin(divergences[::-1]))
    return float(histogram.edges[widest + LEAST])


def _divergence(counts: NDArray[np.float64], bins: int) -> float:
    """KL(P ‖ Q) in nats for a range of `bins` bins; infinite where Q has nothing and P has."""
    inside, beyond = counts[:bins], counts[bins:].sum()
    level = np.arange(bins) * LEVELS // bins
    filled = inside > 0
    totals = np.bincount(level, inside, LEVELS)
    used = np.bincount(level, filled, LEVELS)
    q = np.where(filled, (totals / np.maximum(used, 1))[level], 0.0)
    p = inside.copy()
    p[-1] += beyond
    if not q.any() or bool((q[p > 0] == 0).any()):
        return float("inf")
    p, q = p / p.sum(), q / q.sum()
    there = p > 0
    return float((p[there] * np.log(p[there] / q[there])).sum())
