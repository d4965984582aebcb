"""memory: how much memory the engine needs, measured in a process of its own.

    memory.peak_mib    largest resident set of a process that opens the engine and runs it once (kernel's VmHWM)
    memory.engine_mib  that, less what the process held after its imports and before it opened the engine

VmHWM belongs to the process image alone; `ru_maxrss` would begin with the parent's. Linux only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from openclaw_opt.artifacts import Measurement
from openclaw_opt.metrics import Metric, Number

if TYPE_CHECKING:
    from openclaw_opt.metrics.subject import Subject

MIB = 2**20
CHILD = "openclaw_opt.metrics._memory_child"


def memory_command(engine: Path) -> tuple[str, ...]:
    """Arguments after `python` that run the engine of that folder and print its peak."""
    return ("-m", CHILD, str(engine))


class Memory(Metric):
    """Peak resident memory of one run."""

    summary: ClassVar[str] = "peak memory of a process that runs the engine"
    depends_on: ClassVar[Literal["artifact", "target", "machine"]] = "machine"
    numbers: ClassVar[tuple[Number, ...]] = (
        Number("memory.peak_mib", "MiB", "lower", "largest resident set of a process that runs the engine once"),
        Number("memory.engine_mib", "MiB", "lower", "the same, less what the runtime's own code takes"),
    )

    prompt: int = Field(128, gt=0)
    """Tokens of the prompt, or of the text of an encoder."""
    new_tokens: int = Field(16, gt=0)
    """Tokens decoded after it."""
    timeout_s: float = Field(300.0, gt=0)
    """Seconds after which the run is given up."""

    def measure(self, subject: Subject) -> list[Measurement]:
        task = subject.facts.task
        if subject.memory_command is None:
            return self.all_unmeasured(task, subject.memory_why)
        if sys.platform != "linux":
            return self.all_unmeasured(task, f"the peak of one process is not read on {sys.platform}")
        command = [sys.executable, *subject.memory_command, str(self.prompt), str(self.new_tokens)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=self.timeout_s, check=False)
        except subprocess.TimeoutExpired:
            return self.all_unmeasured(task, f"the run took longer than {self.timeout_s:g} s")
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return self.all_unmeasured(task, f"the run ended with exit code {done.returncode}: {last}")
        peaks = json.loads(done.stdout.strip().splitlines()[-1])
        note = "sum of code, weights, caches and activations in a process of its own"
        return [
            self.row("memory.peak_mib", peaks["peak"] / MIB, note=note),
            self.row("memory.engine_mib", (peaks["peak"] - peaks["before"]) / MIB, note=note),
        ]
