"""batching: what a larger batch costs in latency and buys in throughput, and where it stops paying.

    batching.decode_ms, batching.infer_ms            median time of one step (a token for every sequence), or of one batch
    batching.tokens_per_s, batching.samples_per_s    batch / mean time of a step
    batching.knee      the batch where throughput / latency is largest: Kleinrock's power (Power and deterministic rules of
                       thumb for probabilistic problems in computer communications, ICC 1979)

With latency L(b) and throughput X(b) = b / L(b), power is X / L = b / L². At its largest, one per cent more latency buys
one per cent more throughput; beyond it, it buys less. Where the largest batch that was measured has the largest power, the
knee lies there or above and is not stated. Its interval is a bootstrap over rounds.

The batches take turns in every round, each round beginning with another one: what disturbs the machine disturbs all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from openclaw_opt.artifacts import Measurement, Task
from openclaw_opt.errors import MachineError
from openclaw_opt.metrics import Metric, Number
from openclaw_opt.metrics.latency import machine_load, timed

if TYPE_CHECKING:
    from openclaw_opt.artifacts import GraphFacts
    from openclaw_opt.backends import DecoderSession, GenericSession, Ids, Session
    from openclaw_opt.metrics.subject import Subject
    from openclaw_opt.numerics.stats import Estimate

DECODER: tuple[Task, ...] = ("decoder",)
OTHERS: tuple[Task, ...] = ("encoder", "vision")
ENOUGH_ROUNDS = 44
FEWEST_ROUNDS = 7
OVERTIME = 4.0
"""The fewest rounds may take this many times the time box; then measuring ends with what there is."""
Batch = Annotated[int, Field(gt=0)]
Times = dict[int, list[list[float]]]
"""Batch to rounds to milliseconds of each step."""


class Batching(Metric):
    """Latency and throughput at several batch sizes, and the knee."""

    summary: ClassVar[str] = "latency and throughput by batch size, and the batch where more stops paying"
    timed: ClassVar[bool] = True
    """It times the engine: nothing else should run beside it."""
    depends_on: ClassVar[Literal["artifact", "target", "machine"]] = "machine"
    numbers: ClassVar[tuple[Number, ...]] = (
        Number(
            "batching.decode_ms", "ms", "lower", "p50 of the time of a token for every sequence", DECODER, by="batch"
        ),
        Number("batching.tokens_per_s", "token/s", "higher", "batch by the mean time of a token", DECODER, by="batch"),
        Number("batching.infer_ms", "ms", "lower", "p50 of the time of one batch", OTHERS, by="batch"),
        Number("batching.samples_per_s", "1/s", "higher", "batch by the mean time of a batch", OTHERS, by="batch"),
        Number("batching.knee", "sequences", "higher", "batch where throughput by latency is largest"),
    )

    batches: tuple[Batch, ...] = Field(default=(1, 2, 4, 8), min_length=2)
    """Sequences at once, at least two sizes."""
    prompt: int = Field(default=32, gt=0)
    """Tokens of the prompt, or of the text of an encoder; cut to the model's context."""
    new_tokens: int = Field(default=16, gt=1)
    """Tokens decoded after it."""
    time_box_s: float = Field(default=10.0, gt=0)
    """Seconds to measure for, once warm; measuring ends earlier when there are 44 rounds."""

    def measure(self, subject: Subject) -> list[Measurement]:
        task = subject.facts.task
        if subject.speed.open is None:
            return self.all_unmeasured(task, subject.speed.why, subject=subject.speed.subject)
        with ExitStack() as stack:
            try:
                session = stack.enter_context(subject.speed.open())
                load = machine_load()
                times = self._time(self._rounds(session, subject.facts))
            except MachineError as error:
                return self.all_unmeasured(task, error.what, subject=subject.speed.subject)
        note = "; ".join(part for part in (subject.speed.note, self._conditions(task), load) if part)
        step, rate, _ = self.measurement_names(task)
        rows = [row for batch, rounds in times.items() for row in self._rows(step, rate, batch, rounds, note)]
        return [*rows, self._knee(times)]

    def _conditions(self, task: Task) -> str:
        return "in turns" if task == "vision" else f"in turns; prompt {self.prompt}"

    def _rounds(self, session: Session, facts: GraphFacts) -> dict[int, Callable[[], list[float]]]:
        """Batch to what takes one round of it: milliseconds of each step."""
        import numpy as np

        from openclaw_opt.backends import DecoderSession, GenericSession
        from openclaw_opt.metrics.workload import sample_feed, sample_prompt

        batches = sorted(set(self.batches))
        if isinstance(session, GenericSession):
            feeds = {batch: sample_feed(facts, self.prompt, batch) for batch in batches}
            return {batch: partial(_infer, session, feed) for batch, feed in feeds.items()}
        assert isinstance(session, DecoderSession)
        found: dict[int, Callable[[], list[float]]] = {}
        for batch in batches:
            ids, steps = sample_prompt(facts, self.prompt, self.new_tokens, batch)
            follow = np.random.default_rng(1).integers(0, facts.vocab or 1, (steps, batch))
            found[batch] = partial(_decode, session, ids, follow)
        return found

    def _time(self, rounds: dict[int, Callable[[], list[float]]]) -> Times:
        for run in rounds.values():
            run()  # warm-up, not counted
        times: Times = {batch: [] for batch in rounds}
        order, began = list(rounds), time.perf_counter()
        while not self._enough(len(times[order[-1]]), time.perf_counter() - began):
            for batch in order:
                times[batch].append(rounds[batch]())
            order.append(order.pop(0))
        return times

    def _enough(self, rounds: int, seconds: float) -> bool:
        if rounds < FEWEST_ROUNDS:
            return seconds > OVERTIME * self.time_box_s
        return rounds >= ENOUGH_ROUNDS or seconds > self.time_box_s

    def _rows(self, step: str, rate: str, batch: int, rounds: list[list[float]], note: str) -> list[Measurement]:
        from openclaw_opt.numerics.stats import Estimate, mean_estimate, minimum_samples, percentile_estimate

        samples = [one for each in rounds for one in each]
        median = percentile_estimate(samples, 50) if samples else None
        if median is None:
            why = f"p50 needs {minimum_samples(50)} samples, {len(samples)} were taken in the time box"
            return [row.model_copy(update={"at": {"batch": batch}}) for row in (self.unmeasured(step, why), self.unmeasured(rate, why))]  # fmt: skip
        mean = mean_estimate(samples)
        low, high = (None if end is None else 1e3 * batch / end for end in (mean.high, mean.low))
        throughput = Estimate(1e3 * batch / mean.value, low, high, mean.samples)
        rows = (self.row(step, median, note=note), self.row(rate, throughput, note=note))
        return [row.model_copy(update={"at": {"batch": batch}}) for row in rows]

    def _knee(self, times: Times) -> Measurement:
        rounds = min(len(each) for each in times.values())
        if rounds < FEWEST_ROUNDS:
            why = f"the knee needs {FEWEST_ROUNDS} rounds in turns, {rounds} fitted into the time box"
            return self.unmeasured("batching.knee", why)
        found = knee(times)
        if found.value == max(times):
            why = (
                f"throughput by latency is still largest at {max(times)}, the largest batch measured: the knee is there "
                "or above; name larger `batches`"
            )
            return self.unmeasured("batching.knee", why)
        return self.row("batching.knee", found, note="largest throughput / latency (Kleinrock's power)")


def _decode(session: DecoderSession, ids: Ids, follow: Ids) -> list[float]:
    """Prefill, then the time of each later token; the prompt's own time is another metric's."""
    session.prefill(ids)
    return [timed(partial(session.decode, token)) for token in follow]


def _infer(session: GenericSession, feed: dict[str, Any]) -> list[float]:
    return [timed(partial(session.infer, feed))]


def knee(times: Times, *, seed: int = 0) -> Estimate:
    """The batch with the largest b / L², L the median over rounds of a round's mean step; interval over rounds. Pure.

    The interval is that of the discrete choice: percentiles of the batch chosen in each resample of whole rounds.
    """
    import numpy as np

    from openclaw_opt.numerics.stats import RESAMPLES, Estimate

    batches = np.array(sorted(times))
    rounds = min(len(each) for each in times.values())
    steps = np.array([[np.mean(one) for one in times[int(batch)][:rounds]] for batch in batches])  # [batches, rounds]
    power = batches / np.median(steps, axis=1) ** 2
    draws = np.random.default_rng(seed).integers(0, rounds, (RESAMPLES, rounds))
    resampled = batches[:, None] / np.median(steps[:, draws], axis=2) ** 2  # [batches, resamples]
    low, high = np.percentile(batches[resampled.argmax(0)], [2.5, 97.5], method="nearest")
    return Estimate(float(batches[power.argmax()]), float(low), float(high), rounds)
