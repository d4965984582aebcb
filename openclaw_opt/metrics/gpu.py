"""gpu: power, energy, utilisation and memory of an NVIDIA card while the engine answers one request after another.

    gpu.power_w             energy the board took / seconds; of sampled power where the card counts no energy (before Volta)
    gpu.energy_per_token_j  that energy / tokens answered (prompts are paid by them too)
    gpu.energy_per_sample_j the same of encoders and vision models, by sample
    gpu.utilisation         mean share of time in which some kernel ran, as NVML samples it
    gpu.memory_mib          largest memory in use on the card, less what was in use before the engine was opened

All by NVML (nvidia-ml-py), of the whole board: what other processes do on the card is in it. Power is the driver's figure, to
within 5 W by its manual (nvmlDeviceGetPowerUsage). Requests are closed loop, one at a time.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from pydantic import Field

from openclaw_opt.artifacts import Measurement, Task
from openclaw_opt.errors import MachineError
from openclaw_opt.metrics import Metric, Number
from openclaw_opt.metrics.memory import MIB
from openclaw_opt.nvml import first_card

if TYPE_CHECKING:
    from openclaw_opt.backends import Session
    from openclaw_opt.metrics.subject import Subject

DECODER: tuple[Task, ...] = ("decoder",)
OTHERS: tuple[Task, ...] = ("encoder", "vision")
PERIOD_S = 0.05
"""Between two readings; the driver's own figures are not fresher than that."""


class Meter(Protocol):
    """What is read of a card; None where it does not say. See `openclaw_opt.nvml.Card`."""

    def used(self) -> int | None: ...
    def watts(self) -> float | None: ...
    def joules(self) -> float | None: ...
    def busy(self) -> float | None: ...


@dataclass
class Watch:
    """Readings of a card while a block runs, by a thread of its own: `with Watch(card) as watch`."""

    meter: Meter
    watts: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    joules: float | None = None
    seconds: float = 0.0

    def __enter__(self) -> Watch:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._read_on, daemon=True)
        self._joules, self._began = self.meter.joules(), time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began
        after = self.meter.joules()
        self._done.set()
        self._thread.join()
        self.joules = None if after is None or self._joules is None else after - self._joules

    def _read_on(self) -> None:
        while True:
            watts, busy, used = self.meter.watts(), self.meter.busy(), self.meter.used()
            self.watts += [] if watts is None else [watts]
            self.busy += [] if busy is None else [busy]
            self.used += [] if used is None else [used]
            if self._done.wait(PERIOD_S):
                return


class Gpu(Metric):
    """Power, energy, utilisation and memory of the card."""

    summary: ClassVar[str] = "power, energy a token, utilisation and memory of an NVIDIA card, by NVML"
    timed: ClassVar[bool] = True
    depends_on: ClassVar[Literal["artifact", "target", "machine"]] = "machine"
    effort: ClassVar[frozenset[str]] = frozenset({"seconds"})
    numbers: ClassVar[tuple[Number, ...]] = (
        Number("gpu.power_w", "W", "lower", "mean power of the board while it answers"),
        Number("gpu.energy_per_token_j", "J", "lower", "energy of the board by tokens answered", DECODER),
        Number("gpu.energy_per_sample_j", "J", "lower", "energy of the board by samples", OTHERS),
        Number("gpu.utilisation", "", "neither", "mean share of time in which a kernel ran"),
        Number("gpu.memory_mib", "MiB", "lower", "largest memory in use on the card, less what was before"),
    )

    prompt: int = Field(default=128, gt=0)
    """Tokens of the prompt, or of the text of an encoder."""
    new_tokens: int = Field(default=64, gt=1)
    """Tokens decoded after it."""
    batch: int = Field(default=1, gt=0)
    """Sequences at once."""
    seconds: float = Field(default=10.0, gt=0)
    """How long it is watched, once warm."""

    def measure(self, subject: Subject) -> list[Measurement]:
        task = subject.facts.task
        if subject.speed.open is None:
            return self.all_unmeasured(task, subject.speed.why)
        if not subject.target.is_gpu:
            return self.all_unmeasured(task, "the engine runs on the CPU")
        with first_card() as card:
            if card is None:
                return self.all_unmeasured(task, "NVML shows no NVIDIA card on this machine")
            before = card.used()
            try:
                with subject.speed.open() as session:
                    watch, answered = self.watched(self.request(session, subject), card)
            except MachineError as error:
                return self.all_unmeasured(task, error.what)
        return self.rows(watch, answered, before, task)

    def request(self, session: Session, subject: Subject) -> Callable[[], int]:
        """One request of a session, which gives the tokens (or samples) it answered."""
        import numpy as np

        from openclaw_opt.backends import DecoderSession, GenericSession
        from openclaw_opt.metrics.workload import sample_feed, sample_prompt

        if isinstance(session, GenericSession):
            infer = partial(session.infer, sample_feed(subject.facts, self.prompt, self.batch))
            return lambda: (infer(), self.batch)[1]
        assert isinstance(session, DecoderSession)
        ids, steps = sample_prompt(subject.facts, self.prompt, self.new_tokens, self.batch)
        follow = np.random.default_rng(1).integers(0, subject.facts.vocab or 1, (steps - 1, self.batch))

        def generate() -> int:
            session.prefill(ids)
            for token in follow:
                session.decode(token)
            return steps * self.batch

        return generate

    def watched(self, request: Callable[[], int], meter: Meter) -> tuple[Watch, int]:
        """Requests for `seconds`, after one that is not counted; and what they answered."""
        request()
        answered, until = 0, time.perf_counter() + self.seconds
        with Watch(meter) as watch:
            while not answered or time.perf_counter() < until:
                answered += request()
        return watch, answered

    def rows(self, watch: Watch, answered: int, before: int | None, task: Task) -> list[Measurement]:
        """Every number. Pure."""
        joules, how = watch.joules, "the board's own count of energy"
        if not joules and watch.watts:
            joules, how = statistics.fmean(watch.watts) * watch.seconds, f"{len(watch.watts)} readings of power"
        said = f"batch {self.batch}; {watch.seconds:.1f} s, the whole board"
        each = "gpu.energy_per_token_j" if task == "decoder" else "gpu.energy_per_sample_j"
        found = {
            "gpu.power_w": (joules / watch.seconds if joules else None, how),
            each: (joules / answered if joules else None, how),
            "gpu.utilisation": (statistics.fmean(watch.busy) if watch.busy else None, f"{len(watch.busy)} readings"),
            "gpu.memory_mib": (
                (max(watch.used) - before) / MIB if watch.used and before is not None else None,
                f"largest of {len(watch.used)} readings",
            ),
        }
        return [
            self.unmeasured(name, "the card does not tell it to NVML")
            if value is None
            else self.row(name, value, note=f"{said}; {how}")
            for name, (value, how) in found.items()
        ]
