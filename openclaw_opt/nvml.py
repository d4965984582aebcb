"""The first NVIDIA card of this machine as NVML shows it: what it is, what it draws, how busy it is.

The library is nvidia-ml-py (`pynvml`); every reading that a card or its driver does not offer is None, never a guess.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

DRIVER_DEVICES = ("/dev/nvidiactl", "/dev/dxg")
"""Device nodes of NVIDIA's driver on Linux and in WSL."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
Reading = TypeVar("Reading", int, float)


class Card:
    """One card. Readings are of the whole board, whoever uses it."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle

    @property
    def title(self) -> str:
        """The vendor's name, e.g. `NVIDIA L40S`."""
        return str(self._library.nvmlDeviceGetName(self._handle))

    @property
    def compute(self) -> tuple[int, int]:
        """Compute capability (major, minor)."""
        major, minor = self._library.nvmlDeviceGetCudaComputeCapability(self._handle)
        return int(major), int(minor)

    @property
    def memory(self) -> int:
        """Bytes of the card."""
        return int(self._library.nvmlDeviceGetMemoryInfo(self._handle).total)

    def used(self) -> int | None:
        """Bytes in use, of all processes."""
        return self._read(lambda: int(self._library.nvmlDeviceGetMemoryInfo(self._handle).used))

    def watts(self) -> float | None:
        """Power now (on Ampere and later, of the last second), W."""
        return self._read(lambda: float(self._library.nvmlDeviceGetPowerUsage(self._handle)) / 1e3)

    def joules(self) -> float | None:
        """Energy since the driver was loaded, J; Volta and later."""
        return self._read(lambda: float(self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3)

    def busy(self) -> float | None:
        """Share of the driver's last sampling period (a sixth of a second to a second) in which a kernel ran."""
        return self._read(lambda: float(self._library.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100)

    def _read(self, reading: Callable[[], Reading]) -> Reading | None:
        try:
            return reading()
        except self._library.NVMLError:
            return None


@contextmanager
def first_card() -> Iterator[Card | None]:
    """The card that CUDA calls 0, while NVML is open; None where there is no driver or no card."""
    if sys.platform == "linux" and not any(Path(device).exists() for device in DRIVER_DEVICES):
        yield None  # no driver is loaded, so NVML need not be asked
        return
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield _first(pynvml)
    finally:
        pynvml.nvmlShutdown()


def _first(library: Any) -> Card | None:
    """By CUDA_VISIBLE_DEVICES: a number (in NVML's order), a UUID or its beginning, or a slice of a card (MIG), whose board it is."""
    handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
    chosen = os.environ.get(VISIBLE, "0").split(",")[0].strip()
    if chosen.startswith("MIG-"):
        slice_of = library.nvmlDeviceGetHandleByUUID(chosen)
        return Card(library, library.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(slice_of))
    if chosen.isdigit():
        return Card(library, handles[int(chosen)]) if int(chosen) < len(handles) else None
    fitting = (handle for handle in handles if chosen and library.nvmlDeviceGetUUID(handle).startswith(chosen))
    found = next(fitting, None)
    return Card(library, found) if found is not None else None
