"""latency: how long the engine takes, and how much faster it is than PyTorch on the same machine at the same time.

Decoders, batch by batch, one stream, a closed loop (each token starts when the last has ended: no queueing in these numbers):

    latency.ttft.*     prefill of `prompt` tokens until the first new token's logits
    latency.decode.*   each later token's own time; never a difference of two totals
    latency.e2e.p50_ms  prefill and `new_tokens` tokens
    throughput.prefill_tokens_per_s, throughput.decode_tokens_per_s   Σ tokens / Σ time
    speedup            median decode time of a token, PyTorch eager float32 / engine, over the first 16 tokens of each round
    speedup.prefill    the same of the time to first token

Encoders and vision models: latency.infer.*, throughput.samples_per_s, speedup.

Engine and PyTorch run in turns, one generation each, and which goes first alternates: what disturbs the machine disturbs both.
A speedup is the ratio of medians over rounds with a paired block-bootstrap interval. Warm-up rounds are left out. A percentile
is stated only with enough samples for it (`numerics.stats.minimum_samples`: p50 7, p90 44, p99 459), else it is not measured.
A busy machine slows a runtime of many small parallel regions (PyTorch's) more than one of few: the load average before
measuring is part of every note, and above the number of cores the ratio is not one of an idle machine.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from openclaw_opt.artifacts import Measurement
from openclaw_opt.errors import MachineError
from openclaw_opt.metrics import Metric, Number

if TYPE_CHECKING:
    from openclaw_opt.artifacts import GraphFacts
    from openclaw_opt.backends import Session
    from openclaw_opt.metrics.subject import Opener, Subject

PERCENTILES = (50, 90, 99)
ENOUGH_ROUNDS = 44
"""Rounds after which the time to first token has a p90; its p99 would take 459."""
ENOUGH_TOKENS = 459
FEWEST_ROUNDS = 7
PAIRED_TOKENS = 16
"""Decoded by PyTorch in a round, and compared with the engine's first ones: enough for a median, and a round stays short."""
OVERTIME = 4.0
"""The fewest rounds may take this many times the time box; then measuring ends with what there is."""


def _numbers() -> tuple[Number, ...]:
    def percentiles(of: str, about: str, task: str) -> list[Number]:
        tasks = ("decoder",) if task == "decoder" else ("encoder", "vision")
        return [Number(f"latency.{of}.p{q}_ms", "ms", "lower", f"p{q} of {about}", tasks) for q in PERCENTILES]  # type: ignore[arg-type]

    decoder, others = ("decoder",), ("encoder", "vision")
    return (
        *percentiles("ttft", "the time from the prompt to the first new token", "decoder"),
        *percentiles("decode", "the time of each later token", "decoder"),
        Number("latency.e2e.p50_ms", "ms", "lower", "p50 of the time of prompt and all new tokens", decoder),  # type: ignore[arg-type]
        Number("throughput.prefill_tokens_per_s", "token/s", "higher", "prompt tokens by the time of prefill", decoder),  # type: ignore[arg-type]
        Number("throughput.decode_tokens_per_s", "token/s", "higher", "new tokens by the time of decode", decoder),  # type: ignore[arg-type]
        *percentiles("infer", "the time of one batch", "others"),
        Number("throughput.samples_per_s", "1/s", "higher", "samples by the time of their batches", others),  # type: ignore[arg-type]
        Number("speedup", "×", "higher", "median time, PyTorch eager float32 / engine, in turns"),
        Number("speedup.prefill", "×", "higher", "the same of the time to first token", decoder),  # type: ignore[arg-type]
    )


@dataclass
class Times:
    """Milliseconds, in the order they were taken: one `first` a round, `later` for each token after it."""

    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    per_round: list[float] = field(default_factory=list)
    """Mean of a round's first PAIRED_TOKENS of `later`; for models without a cache, its `first`."""
    whole: list[float] = field(default_factory=list)

    def add(self, first: float, later: list[float]) -> None:
        self.first.append(first)
        self.later += later
        self.per_round.append(statistics.fmean(later[:PAIRED_TOKENS]) if later else first)
        self.whole.append(first + sum(later))


Round = Callable[[], tuple[float, list[float]]]


class Latency(Metric):
    """Latency percentiles, throughput, and speedup over PyTorch."""

    summary: ClassVar[str] = (
        "time to first token, time of a token, tokens per second, speedup over PyTorch eager float32"
    )
    timed: ClassVar[bool] = True
    numbers: ClassVar[tuple[Number, ...]] = _numbers()
    depends_on: ClassVar[Literal["artifact", "target", "machine"]] = "machine"
    effort: ClassVar[frozenset[str]] = frozenset({"warmup", "time_box_s", "compare", "passes"})

    prompt: int = Field(default=128, gt=0)
    """Tokens of the prompt, or of the text of an encoder; cut to the model's context."""
    new_tokens: int = Field(default=64, gt=1)
    """Tokens decoded after it."""
    batch: int = Field(default=1, gt=0)
    """Sequences at once."""
    warmup: int = Field(default=2, gt=0)
    """Rounds that are not counted."""
    time_box_s: float = Field(default=20.0, gt=0)
    """Seconds to measure for, once warm. Measuring ends earlier when p99 of a token and p90 of a prompt have their samples."""
    compare: bool = True
    """Time PyTorch in turns with the engine."""
    passes: bool = True
    """Make an engine of what each pass gave and time them all in turns, for half of `time_box_s` more. Where the engine does not run
    here, the GPU's bound is counted instead."""

    def measure(self, subject: Subject) -> list[Measurement]:
        task = subject.facts.task
        if subject.speed.open is None:
            return self.all_unmeasured(task, subject.speed.why, subject=subject.speed.subject)
        eager = subject.eager if self.compare and subject.eager.open is not None else None
        with ExitStack() as stack:
            try:
                ours = self.round_of(stack, subject.speed, subject.facts, self.new_tokens)
            except MachineError as error:
                return self.all_unmeasured(task, error.what, subject=subject.speed.subject)
            tokens = min(self.new_tokens, PAIRED_TOKENS)
            theirs = self.round_of(stack, eager, subject.facts, tokens) if eager else None
            load = machine_load()
            engine, reference = self.in_turns(ours, theirs)
        said = ", ".join(part for part in (subject.speed.note, load) if part)
        rows = self._rows(engine, subject.facts, subject.speed.subject, said)
        if eager:
            said = f"{eager.note or 'PyTorch eager float32'}, {load}"
            beside = self._rows(reference, subject.facts, "reference", said)
            rows += [row for row in beside if row.value is not None and row.name != "latency.e2e.p50_ms"]
            return rows + self._speedups(reference, engine, task, load)
        why = subject.eager.why or "the recipe says compare: false"
        names = [number.name for number in self.numbers if number.name.startswith("speedup") and task in number.tasks]
        return rows + [self.unmeasured(name, why) for name in names]

    def round_of(self, stack: ExitStack, opener: Opener, facts: GraphFacts, tokens: int) -> Round:
        """One generation (or one batch) of a session that is opened on the stack. Raises MachineError where it cannot be."""
        import numpy as np

        from openclaw_opt.backends import DecoderSession, GenericSession
        from openclaw_opt.metrics.workload import sample_feed, sample_prompt

        assert opener.open is not None
        session: Session = stack.enter_context(opener.open())
        if isinstance(session, DecoderSession):
            ids, steps = sample_prompt(facts, self.prompt, self.new_tokens, self.batch)
            follow = np.random.default_rng(1).integers(0, facts.vocab or 1, (min(steps, tokens), self.batch))

            def generate() -> tuple[float, list[float]]:
                first = timed(lambda: session.prefill(ids))
                return first, [timed(partial(session.decode, token)) for token in follow]

            return generate
        assert isinstance(session, GenericSession)
        infer = partial(session.infer, sample_feed(facts, self.prompt, self.batch))
        return lambda: (timed(infer), [])

    def in_turns(self, ours: Round, theirs: Round | None) -> tuple[Times, Times]:
        """Rounds in turns until there are enough samples or the time is up."""
        engine, reference = Times(), Times()
        pairs = [(ours, engine), *([(theirs, reference)] if theirs else [])]
        for run, _ in pairs * self.warmup:
            run()
        began = time.perf_counter()
        while not self._enough(engine, time.perf_counter() - began):
            for run, times in pairs:
                times.add(*run())
            pairs.reverse()
        return engine, reference

    def _enough(self, times: Times, seconds: float) -> bool:
        rounds = len(times.first)
        if rounds < FEWEST_ROUNDS:
            return seconds > OVERTIME * self.time_box_s
        sampled = rounds >= ENOUGH_ROUNDS and len(times.later or times.first) >= ENOUGH_TOKENS
        return sampled or seconds > self.time_box_s

    def _rows(self, times: Times, facts: GraphFacts, subject: str, note: str) -> list[Measurement]:
        from openclaw_opt.metrics.workload import sample_prompt

        said = f"batch {self.batch}" + (f"; {note}" if note else "")
        if not times.later:
            rows = self._percentiles("infer", times.first, subject, said)
            return [*rows, self.rate("throughput.samples_per_s", self.batch, times.first, subject, said)]
        ids, _ = sample_prompt(facts, self.prompt, self.new_tokens)
        prompt = ids.shape[1]
        said = f"{said}; prompt {prompt}, {len(times.later) // len(times.first)} new tokens"
        return [
            *self._percentiles("ttft", times.first, subject, said),
            *self._percentiles("decode", times.later, subject, said),
            self.percentile("latency.e2e.p50_ms", 50, times.whole, subject, said),
            self.rate("throughput.prefill_tokens_per_s", prompt * self.batch, times.first, subject, said),
            self.rate("throughput.decode_tokens_per_s", self.batch, times.later, subject, said),
        ]

    def _percentiles(self, of: str, samples: list[float], subject: str, note: str) -> list[Measurement]:
        rows = [self.percentile(f"latency.{of}.p{q}_ms", q, samples, subject, note) for q in PERCENTILES]
        first = rows[0]
        return [first.model_copy(update={"raw": tuple(round(one, 6) for one in samples)}), *rows[1:]]

    def percentile(self, name: str, q: int, samples: list[float], subject: str, note: str) -> Measurement:
        """The q-th percentile of samples in ms, or how many are missing for it."""
        from openclaw_opt.numerics.stats import minimum_samples, percentile_estimate

        estimate = percentile_estimate(samples, q)
        if estimate is not None:
            return self.row(name, estimate, subject=subject, note=note)
        why = f"p{q} needs {minimum_samples(q)} samples, {len(samples)} were taken in the time box"
        return self.unmeasured(name, why, subject=subject)

    def rate(self, name: str, items: int, samples: list[float], subject: str, note: str) -> Measurement:
        """items / mean seconds, with the interval of the mean in blocks."""
        from openclaw_opt.numerics.stats import Estimate, mean_estimate

        mean = mean_estimate(samples)
        low, high = (None if end is None else 1e3 * items / end for end in (mean.high, mean.low))
        value = 1e3 * items / mean.value
        return self.row(name, Estimate(value, low, high, mean.samples), subject=subject, note=note)

    def _speedups(self, reference: Times, engine: Times, task: str, note: str) -> list[Measurement]:
        from openclaw_opt.numerics.stats import minimum_samples, paired_ratio

        series = {"speedup": (reference.per_round, engine.per_round)}
        if task == "decoder":
            series["speedup.prefill"] = (reference.first, engine.first)
        rows = []
        for name, (theirs, ours) in series.items():
            ratio = paired_ratio(theirs, ours)
            if ratio is None:
                why = f"a ratio needs {minimum_samples(50)} rounds in turns, {len(ours)} fitted into the time box"
                rows.append(self.unmeasured(name, why))
            else:
                said = "PyTorch eager float32 / engine, in turns" + (f"; {note}" if note else "")
                rows.append(self.row(name, ratio, note=said))
        return rows


def machine_load() -> str:
    """The load average of the last minute by the cores there are, e.g. `load 0.4 on 2 cores`."""
    if not hasattr(os, "getloadavg"):
        return "load not known"
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def timed(run: Callable[[], object]) -> float:
    """Milliseconds of one call; sessions give arrays in host memory, so the work is done when it returns."""
    began = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - began) / 1e6
