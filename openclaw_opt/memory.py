"""Peak resident memory of this process and its children while something runs, by sampling."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import psutil

INTERVAL_S = 0.05


class Peak:
    """`bytes` is the largest sum of resident set sizes seen so far."""

    def __init__(self) -> None:
        self.bytes = 0
        self._process = psutil.Process()

    def sample(self) -> None:
        self.bytes = max(self.bytes, sum(_rss(one) for one in [self._process, *self._process.children(recursive=True)]))


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0  # a child that ended between listing and asking


@contextlib.contextmanager
def peak_memory() -> Iterator[Peak]:
    """Sample every 50 ms until the block ends. Spikes shorter than that can be missed; the report says it is sampled."""
    peak, ended = Peak(), threading.Event()

    def watch() -> None:
        while not ended.wait(INTERVAL_S):
            peak.sample()

    thread = threading.Thread(target=watch, daemon=True)
    peak.sample()
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
        peak.sample()
