"""SmoothQuant (arXiv:2211.10438): factors that move a part of the inputs' range into the weight, channel by channel.

    W·x = (W / s)·(s ∘ x)        s_j = max|W_j|^(1 − alpha) / max|x_j|^alpha

In exact arithmetic nothing changes, whatever s is. With alpha 0.5 both sides have the same largest value in every channel,
sqrt(max|W_j| · max|x_j|); the more is moved the larger alpha is.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST, LARGEST = 1e-4, 1e4
"""Of a factor: what one outlier says is not to fill the other channels' codes."""


def smoothing_factors(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """What each channel of the input is multiplied with, and its column of the weight divided by.

    Args:
        inputs: largest absolute value of each channel on calibration data, [K].
        weights: largest absolute value of each column of the weight, [K].
        alpha: share of the inputs' range that moves, 0 to 1.

    Returns:
        float32 [K]; 1 where a channel is zero on either side.
    """
    x, w = inputs.float(), weights.float()
    factors = (w.pow(1 - alpha) / x.pow(alpha)).clamp(SMALLEST, LARGEST)
    return torch.where((x > 0) & (w > 0), factors, 1.0)
