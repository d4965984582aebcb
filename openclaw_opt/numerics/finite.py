"""Is every number a number?"""

from __future__ import annotations

import torch
from torch import Tensor


def is_finite(x: Tensor) -> bool:
    """Neither NaN nor infinity. Reads `x` once and makes no mask: a NaN is the least and the largest of its tensor.

    A type that has no order here (float8) must be made wider first.
    """
    return not x.numel() or bool(torch.stack(x.aminmax()).isfinite().all())
