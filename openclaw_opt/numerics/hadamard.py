"""Randomized Hadamard matrices: orthogonal, and they spread what sticks out in one channel over all.

    Q = (R ⊗ H_p / √p) · diag(±1),   size = m·p, p the largest power of two that divides it, H_p Sylvester's Hadamard matrix,
                                     R a random orthogonal m × m matrix (1 for m = 1)

Q·Qᵀ = I. Where size is a power of two every entry of Q is ±1/√size. All arithmetic is float64.

Source: Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", https://arxiv.org/abs/2404.00456.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sylvester(size: int) -> Tensor:
    """The Hadamard matrix of a power of two, entries ±1, float64. Raises ValueError for another size."""
    if size < 1 or size & (size - 1):
        raise ValueError(f"{size} is no power of two")
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def random_hadamard(size: int, seed: int) -> Tensor:
    """Q, float64 [size, size]; the same for the same seed."""
    random = torch.Generator().manual_seed(seed)
    power = size & -size
    odd = size // power
    matrix = sylvester(power) / power**0.5
    if odd > 1:
        orthogonal, upper = torch.linalg.qr(torch.randn(odd, odd, dtype=torch.float64, generator=random))
        matrix = torch.kron((orthogonal * upper.diagonal().sign()).contiguous(), matrix)
    signs = torch.randint(0, 2, (size,), generator=random).double() * 2 - 1
    turned: Tensor = matrix * signs
    return turned
