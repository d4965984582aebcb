"""What this machine's memory and arithmetic can do, measured: the ceiling of a roofline on `host`.

    reading     every core sums its own part of a buffer as large as what a step reads, again and again until AT_LEAST bytes;
                bytes / time of the slowest. Like STREAM's kernels but read-only, which is what a decode step does with its
                weights; of weights that fit into a cache it is the cache that is measured, so the bound stays a bound.
    arithmetic  a square matrix product of SIDE on all cores: float32 and bfloat16 by PyTorch (the faster counts as `fp16`, the
                rate of float layers), int8 by its oneDNN kernel; 2 · SIDE³ operations / time.

Each number is the best of its passes: a rate that was reached once is one the machine can reach. A machine that is busy throughout
gives less than it could, so the load average is part of the note.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

AT_LEAST = 128 * 2**20
SMALLEST = 2**20
SIDE = 1024
PASSES = 7
ENOUGH = 0.5
"""Seconds after which a product is not measured again."""


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Rates:
    """Bytes a second, and operations a second by element width."""

    bandwidth: float
    peak: dict[str, float]

    @property
    def note(self) -> str:
        load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
        return f"reads {self.bandwidth / 1e9:.1f} GB/s on {cores()} cores, measured in this run{load}"


class Reader:
    """A buffer of `size` bytes and threads that read it."""

    def __init__(self, size: int) -> None:
        self._size, threads = max(size, SMALLEST), cores()
        self._times = max(1, AT_LEAST // self._size)
        self._parts = np.array_split(np.ones(self._size // 4, np.float32), threads)
        self._pool = ThreadPoolExecutor(threads)

    def close(self) -> None:
        self._pool.shutdown()
        self._parts = []

    def once(self) -> float:
        """Bytes a second."""
        began = time.perf_counter()
        list(self._pool.map(self._read, self._parts))
        return self._times * self._size / (time.perf_counter() - began)

    def _read(self, part: NDArray[np.float32]) -> float:
        return sum(float(np.dot(part, part)) for _ in range(self._times))


def measure(size: int) -> Rates:
    """Both ceilings, in a few seconds; `size` bytes are what a step reads."""
    reader = Reader(size)
    bandwidth = max(reader.once() for _ in range(PASSES))
    reader.close()
    return Rates(bandwidth, arithmetic())


def arithmetic() -> dict[str, float]:
    """Operations a second of the float and int8 matrix products; int8 is left out where this PyTorch has no kernel for it."""
    import torch

    wide = torch.ones(SIDE, SIDE)
    half = wide.bfloat16()
    rates = {"fp16": max(_rate(lambda: wide @ wide), _rate(lambda: half @ half))}
    low = torch.ones(SIDE, SIDE, dtype=torch.int8)
    try:
        rates["int8"] = _rate(lambda: torch._int_mm(low, low))
    except (RuntimeError, AttributeError):
        return rates
    return rates


def _rate(multiply: Callable[[], object]) -> float:
    """Operations a second of a product of SIDE: the best of PASSES, or of those that fit into ENOUGH."""
    best, ends = float("inf"), time.perf_counter() + ENOUGH
    for _ in range(PASSES):
        began = time.perf_counter()
        multiply()
        now = time.perf_counter()
        best = min(best, now - began)
        if now > ends:  # a CPU without bfloat16 or int8 units takes seconds for one
            break
    return float(2 * SIDE**3 / best)
