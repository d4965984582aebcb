"""A large tensor in pieces of its first axis: what is computed element by element then needs a piece beside it, not a copy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

PIECE = 1 << 17
"""Elements; their float64 is 1 MiB, which fits the caches of one core and which an allocator hands out again without asking the system."""


def slices(x: Tensor) -> Iterator[slice]:
    """The first axis in steps of about PIECE elements; at once where there is no second axis."""
    rows = len(x) if x.ndim < 2 else max(1, PIECE // max(1, x[:1].numel()))
    return (slice(start, start + rows) for start in range(0, len(x), max(1, rows)))


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of tensors with one first axis, piece by piece; whole where the first has no axis or no rows."""
    first = tensors[0]
    if not first.ndim or not len(first):
        return iter([tensors])
    return (tuple(x[at] for x in tensors) for at in slices(first))


def joined(parts: Iterable[Tensor]) -> Tensor:
    """The parts behind each other; the only one as it is."""
    every = list(parts)
    return every[0] if len(every) == 1 else torch.cat(every)
