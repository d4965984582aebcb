"""cold-start: how long a fresh process takes until its first answer.

    cold_start.p50_ms  from starting the process (interpreter and imports included) to the first token, or the first batch of one
    cold_start.load_ms the part that opens the engine: reading weights, laying them out for the kernels; median

The files are in the page cache after the first of the runs, which is not counted: what is timed is a start, not a disk.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from openclaw_opt.artifacts import Measurement
from openclaw_opt.metrics import Metric, Number

if TYPE_CHECKING:
    from openclaw_opt.metrics.subject import Subject

CHILD = "openclaw_opt.metrics._cold_child"


class ColdStart(Metric):
    """Time from the start of a process to its first answer."""

    summary: ClassVar[str] = "time from the start of a process to its first answer"
    timed: ClassVar[bool] = True
    depends_on: ClassVar[Literal["artifact", "target", "machine"]] = "machine"
    numbers: ClassVar[tuple[Number, ...]] = (
        Number("cold_start.p50_ms", "ms", "lower", "p50 from the start of a process to its first token or batch"),
        Number("cold_start.load_ms", "ms", "lower", "the part of it that opens the engine, median"),
    )

    prompt: int = Field(default=128, gt=0)
    """Tokens of the prompt, or of the text of an encoder."""
    runs: int = Field(default=7, ge=7)
    """Processes to start, one after the other; a median needs 7."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds after which one start is given up."""

    def measure(self, subject: Subject) -> list[Measurement]:
        task = subject.facts.task
        if subject.memory_command is None:
            return self.all_unmeasured(task, subject.memory_why)
        folder = subject.memory_command[-1]
        whole, loads = [], []
        for run in range(self.runs + 1):
            began = time.perf_counter()
            try:
                found = self._start(folder)
            except subprocess.TimeoutExpired:
                return self.all_unmeasured(task, f"a start took longer than {self.timeout_s:g} s")
            if found.returncode != 0:
                last = (found.stderr.strip().splitlines() or ["no message"])[-1]
                return self.all_unmeasured(task, f"a start ended with exit code {found.returncode}: {last}")
            if run:
                whole.append(1e3 * (time.perf_counter() - began))
                loads.append(float(json.loads(found.stdout.strip().splitlines()[-1])["load_ms"]))
        return self.rows(whole, loads)

    def _start(self, folder: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", CHILD, folder, str(self.prompt)]
        return subprocess.run(command, capture_output=True, text=True, timeout=self.timeout_s, check=False)

    def rows(self, whole: list[float], loads: list[float]) -> list[Measurement]:
        """Both numbers. Pure."""
        from openclaw_opt.numerics.stats import percentile_estimate

        estimate = percentile_estimate(whole, 50)
        assert estimate is not None, "`runs` is enough for a median"
        note = f"{len(whole)} processes one after the other, files in the page cache, the end of the process included"
        return [
            self.row("cold_start.p50_ms", estimate, note=note),
            self.row("cold_start.load_ms", statistics.median(loads), note=note),
        ]
