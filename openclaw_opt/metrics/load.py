"""load: what users would see at a given rate of requests, one engine that serves one request at a time.

An open loop: requests arrive by a Poisson process whether the engine is free or not, and wait in a queue, first come first served.
Every time is counted from the moment a request was due, so a slow answer delays what comes after it in the numbers too (a closed loop
hides that: coordinated omission).

    load.rate_rps        requests a second that were offered: `rate_rps`, or `utilisation` / the mean time of a request alone
    load.ttft.p50_ms, load.ttft.p90_ms, load.ttft.p99_ms   from due to the first token, waiting included
    load.e2e.p50_ms, load.e2e.p90_ms, load.e2e.p99_ms      from due to the last token
    load.slo             share of requests with time to first token ≤ `ttft_ms` and mean later token ≤ `itl_ms`
    load.goodput_rps     those requests a second, over the time from the first arrival to the last answer

Percentiles need their samples, as everywhere. Definitions: MLPerf LoadGen's Server scenario; goodput as in DistServe (2401.09670).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from openclaw_opt.artifacts import Measurement, Task
from openclaw_opt.errors import MachineError
from openclaw_opt.metrics import Metric, Number

if TYPE_CHECKING:
    from openclaw_opt.metrics.subject import Subject

PERCENTILES = (50, 90, 99)
ALONE = 5
"""Requests that are served one after the other first, to know what the engine can do."""
DECODER: tuple[Task, ...] = ("decoder",)


@dataclass(frozen=True)
class Served:
    """One request in seconds from the start of the run: due, first token, last token; and its tokens."""

    due: float
    first: float
    last: float
    tokens: int

    @property
    def ttft_ms(self) -> float:
        return 1e3 * (self.first - self.due)

    @property
    def e2e_ms(self) -> float:
        return 1e3 * (self.last - self.due)

    @property
    def itl_ms(self) -> float:
        return 1e3 * (self.last - self.first) / max(1, self.tokens - 1)


class Load(Metric):
    """Latency, and goodput under an SLO, with requests that arrive whether the engine is free or not."""

    summary: ClassVar[str] = "open loop: waiting and answering times at a rate of requests, goodput under an SLO"
    for_tasks: ClassVar[tuple[Task, ...]] = DECODER
    timed: ClassVar[bool] = True
    depends_on: ClassVar[Literal["artifact", "target", "machine"]] = "machine"
    numbers: ClassVar[tuple[Number, ...]] = (
        Number("load.rate_rps", "1/s", "neither", "requests a second that were offered", DECODER),
        *(
            Number(f"load.ttft.p{q}_ms", "ms", "lower", f"p{q} from due to the first token", DECODER)
            for q in PERCENTILES
        ),
        *(Number(f"load.e2e.p{q}_ms", "ms", "lower", f"p{q} from due to the last token", DECODER) for q in PERCENTILES),
        Number("load.slo", "", "higher", "share of requests within the SLO", DECODER),
        Number("load.goodput_rps", "1/s", "higher", "requests a second within the SLO", DECODER),
    )

    prompt: int = Field(default=128, gt=0)
    """Tokens of each prompt."""
    new_tokens: int = Field(default=32, gt=1)
    """Tokens of each answer."""
    requests: int = Field(default=64, gt=0)
    """Requests to offer; p90 needs 44, p99 459."""
    rate_rps: float | None = Field(default=None, gt=0)
    """Requests a second. Default: `utilisation` of what the engine can do."""
    utilisation: float = Field(default=0.7, gt=0, lt=1)
    """Part of the engine's capacity that is asked for, where no rate is given."""
    ttft_ms: float = Field(default=2000.0, gt=0)
    """SLO: from due to the first token. Default: MLPerf's for an 8B server."""
    itl_ms: float = Field(default=100.0, gt=0)
    """SLO: mean time of each later token. Default: MLPerf's for an 8B server."""
    time_box_s: float = Field(default=60.0, gt=0)
    """No request is offered later than that."""

    def measure(self, subject: Subject) -> list[Measurement]:
        if subject.speed.open is None:
            return self.all_unmeasured("decoder", subject.speed.why, subject=subject.speed.subject)
        try:
            served, rate = self._run(subject)
        except MachineError as error:
            return self.all_unmeasured("decoder", error.what, subject=subject.speed.subject)
        return self.rows(served, rate)

    def _run(self, subject: Subject) -> tuple[list[Served], float]:
        from openclaw_opt.backends import DecoderSession
        from openclaw_opt.metrics.workload import sample_prompt

        assert subject.speed.open is not None
        ids, steps = sample_prompt(subject.facts, self.prompt, self.new_tokens)
        with subject.speed.open() as session:
            assert isinstance(session, DecoderSession)

            def generate() -> float:
                session.prefill(ids)
                first = time.perf_counter()
                for _ in range(steps - 1):
                    session.decode(ids[:, 0])
                return first

            generate()
            began = time.perf_counter()
            for _ in range(ALONE):
                generate()
            alone = (time.perf_counter() - began) / ALONE
            rate = self.rate_rps or self.utilisation / alone
            return serve(arrivals(rate, self.requests, self.time_box_s), generate, steps), rate

    def rows(self, served: list[Served], rate: float) -> list[Measurement]:
        """Every number. Pure."""
        from openclaw_opt.numerics.stats import minimum_samples, percentile_estimate, ratio_of_sums

        note = (
            f"open loop, Poisson arrivals at {rate:.3g} requests/s, one at a time; {self.prompt} + {self.new_tokens} tokens; "
            f"SLO: first token ≤ {self.ttft_ms:g} ms, later ones ≤ {self.itl_ms:g} ms"
        )
        rows = [self.row("load.rate_rps", rate, note=note)]
        for name, times in (("ttft", [one.ttft_ms for one in served]), ("e2e", [one.e2e_ms for one in served])):
            for q in PERCENTILES:
                estimate = percentile_estimate(times, q)
                why = f"p{q} needs {minimum_samples(q)} requests, {len(times)} were served"
                full = f"load.{name}.p{q}_ms"
                rows.append(self.unmeasured(full, why) if estimate is None else self.row(full, estimate, note=note))
        good = [float(one.ttft_ms <= self.ttft_ms and one.itl_ms <= self.itl_ms) for one in served]
        rows.append(self.row("load.slo", ratio_of_sums(good, [1.0] * len(good)), note=note))
        span = max(one.last for one in served) - min(one.due for one in served)
        rows.append(self.row("load.goodput_rps", sum(good) / span, note=note))
        return rows


def arrivals(rate: float, count: int, limit_s: float, seed: int = 0) -> list[float]:
    """When requests are due, in seconds: exponential gaps of mean 1 / rate, the first at 0; at least one."""
    import numpy as np

    gaps = np.random.default_rng(seed).exponential(1 / rate, count)
    gaps[0] = 0.0
    return [float(due) for due in np.cumsum(gaps) if due <= limit_s]


def serve(
    due: list[float],
    generate: Callable[[], float],
    tokens: int,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Served]:
    """Serve each request when it is due or when the one before it is done. `generate` returns the clock at its first token."""
    began, served = clock(), []
    for at in due:
        wait = began + at - clock()
        if wait > 0:
            sleep(wait)
        first = generate()
        served.append(Served(at, first - began, clock() - began, tokens))
    return served
