"""What TensorRT's build log says of sparse kernels. Pure functions of text.

The builder writes, once a choice of kernels, how many layers hold 2:4 zeros and for how many of these it chose a sparse kernel:

    (Sparsity) Found 39 layer(s) eligible to use sparse tactics: …
    (Sparsity) Chose 0 layer(s) using sparse tactics: …

and before version 8.5 the names of both. Not tried here, since that builder needs its GPU: what is not found is said to be unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_FOUND = re.compile(r"\(Sparsity\) Found (\d+) layer\(s\) eligible to use sparse tactics")
_CHOSE = re.compile(r"\(Sparsity\) Chose (\d+) layer\(s\) using sparse tactics")
_ELIGIBLE = re.compile(r"\(Sparsity\) Layers eligible for sparse math:(.*)")
_PICKED = re.compile(r"\(Sparsity\) TRT inference plan picked sparse implementation for layers:(.*)")


def notes(lines: Iterable[str]) -> tuple[str, ...]:
    """How many layers run sparse kernels, as a note of the engine; or that the log does not say."""
    found: int | None = None
    chose: int | None = None
    for line in lines:
        if match := _FOUND.search(line):
            found = int(match[1])
        elif match := _CHOSE.search(line):
            chose = int(match[1])
        elif match := _ELIGIBLE.search(line):
            found = _names(match[1])
        elif match := _PICKED.search(line):
            chose = _names(match[1])
    if found is None or chose is None:
        return ("2:4 zeros: the build log does not say which layers run sparse kernels",)
    return (f"2:4 zeros: the builder found them in {found} layers and runs {chose} of these with sparse kernels",)


def _names(listed: str) -> int:
    return len([name for name in listed.split(",") if name.strip()])
