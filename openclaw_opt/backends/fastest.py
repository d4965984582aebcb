"""`backend: fastest`: build for every runtime that can take the graph, time them in turns here, keep the faster.

One round is a prefill of PROMPT tokens and STEPS decode steps in each engine, of an encoder or a vision model one run of one sample;
which goes first alternates. What counts is the time of PROMPT and NEW tokens, prefill + NEW · decode, and the first candidate is
kept unless another is faster beyond the 95 % interval of the ratio: a noisy machine cannot choose. Every candidate's numbers, or why
it is none, stand in the engine's notes.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from openclaw_opt.artifacts import SECOND, Engine, Graph, GraphFacts
from openclaw_opt.backends import DecoderSession, GenericSession
from openclaw_opt.backends.engines import open_engine
from openclaw_opt.backends.onnxruntime import sample_feed
from openclaw_opt.errors import MachineError, OptError, RecipeError, VerificationError
from openclaw_opt.graph.to_onnxruntime import FAST, with_accuracy_level
from openclaw_opt.numerics.stats import Estimate, paired_ratio
from openclaw_opt.targets import CANDIDATES, Target

Progress = Callable[[float, str], None]
PROMPT, NEW, STEPS = 128, 64, 16
ROUNDS, WARMUP = 9, 2
TRIALS = "trials"


class Asked(NamedTuple):
    """Options of the pass that ONNX Runtime's candidate takes."""

    require_realised: bool
    tune: bool


@dataclass
class Trial:
    """One candidate: its engine and milliseconds of each round, or why there is none."""

    name: str
    engine: Engine | None = None
    why: str = ""
    prefill: list[float] = field(default_factory=list)
    """Of a model without a cache, a whole run."""
    decode: list[float] = field(default_factory=list)
    """Median of a round's steps; 0 without a cache."""

    @property
    def whole(self) -> list[float]:
        return [first + NEW * later for first, later in zip(self.prefill, self.decode, strict=True)]

    @property
    def told(self) -> str:
        if self.engine is None:
            return f"{self.name} is no candidate: {self.why}"
        prefill, decode = statistics.median(self.prefill), statistics.median(self.decode)
        if not decode:
            return f"{self.name} {prefill:.1f} ms for one sample"
        return f"{self.name} {prefill:.1f} ms for {PROMPT} tokens of prompt, {decode:.2f} ms a token after it"


def build(
    graph: Graph,
    target: Target,
    folder: Path,
    progress: Progress = lambda part, text: None,
    *,
    require_realised: bool = True,
    tune: bool = False,
) -> Engine:
    """The fastest engine, in `folder`. Raises what the last candidate raised when there is none."""
    scratch = folder / TRIALS
    errors: list[OptError] = []
    trials = []
    for i, name in enumerate(CANDIDATES):
        progress(0.3 * i, f"building for {name}")
        trials.append(_built(name, graph, target, scratch / name, Asked(require_realised, tune), errors))
    there = [trial for trial in trials if trial.engine is not None]
    if not there:
        raise errors[-1]
    if len(there) > 1:
        progress(0.7, "timing the candidates in turns")
        race([trial for trial in there if trial.engine is not None])
    best, said = chosen(there)
    assert best.engine is not None
    made = _moved(best.engine, folder)
    shutil.rmtree(scratch)
    notes = (said, *(trial.told for trial in trials if trial.prefill or trial.engine is None))
    made.write_facts(made.facts.model_copy(update={"notes": (*made.facts.notes, *notes)}))
    return made


def _built(name: str, graph: Graph, target: Target, folder: Path, asked: Asked, errors: list[OptError]) -> Trial:
    try:
        if name == "gguf":
            from openclaw_opt.backends import gguf

            return Trial(name, gguf.build(graph, target, folder))
        if name == "openvino":
            from openclaw_opt.backends import openvino

            lowered = Graph(graph.folder / SECOND)
            return Trial(name, openvino.build(lowered, target, folder, require_realised=asked.require_realised))
        from openclaw_opt.backends import onnxruntime

        lowered = with_accuracy_level(graph, folder / "graph", FAST)
        shutil.copytree(graph.assets, lowered.assets, dirs_exist_ok=True)
        return Trial(
            name,
            onnxruntime.build(
                lowered,
                target,
                folder / "engine",
                require_realised=asked.require_realised,
                tune=asked.tune,
            ),
        )
    except (RecipeError, MachineError, VerificationError) as error:
        errors.append(error)
        return Trial(name, why=error.what)


def race(trials: list[Trial]) -> None:
    """Time the candidates in turns; their lists fill."""
    with ExitStack() as stack:
        runs = []
        for trial in trials:
            assert trial.engine is not None
            runs.append((trial, _round_of(_opened(stack, trial.engine), trial.engine.facts.graph)))
        for turn in range(WARMUP + ROUNDS):
            for trial, once in runs:
                first, later = once()
                if turn >= WARMUP:
                    trial.prefill.append(first)
                    trial.decode.append(later)
            runs.reverse()


def _opened(stack: ExitStack, engine: Engine) -> DecoderSession | GenericSession:
    session = open_engine(engine)
    stack.callback(session.close)
    return session


def _round_of(session: DecoderSession | GenericSession, facts: GraphFacts) -> Callable[[], tuple[float, float]]:
    """What is timed of one engine: milliseconds of a prompt and of a step after it."""
    if isinstance(session, GenericSession):
        feed = sample_feed(facts)
        return lambda: (_timed(lambda: session.infer(feed)), 0.0)
    assert facts.vocab is not None and facts.context is not None  # noqa: PT018
    random = np.random.default_rng(0)
    prompt = random.integers(0, facts.vocab, (1, max(1, min(PROMPT, facts.context - STEPS))))
    follow = random.integers(0, facts.vocab, (min(STEPS, facts.context - 1), 1))

    def once() -> tuple[float, float]:
        first = _timed(lambda: session.prefill(prompt))
        return first, statistics.median(_timed(lambda ids=ids: session.decode(ids)) for ids in follow)  # type: ignore[misc]

    return once


def chosen(trials: list[Trial]) -> tuple[Trial, str]:
    """The candidate to keep, and the sentence that says why. The first unless another is faster beyond the interval."""
    best, said = trials[0], f"fastest: {trials[0].name} is the only candidate"
    for other in trials[1:]:
        ratio = paired_ratio(best.whole, other.whole)
        assert ratio is not None, "enough rounds for a ratio"
        clear = ratio.low is not None and ratio.low > 1
        winner, loser = (other, best) if clear else (best, other)
        of = f"{PROMPT} + {NEW} tokens" if any(best.decode) else "one sample"
        said = f"fastest: kept {winner.name}; {loser.name} / {winner.name} {_shown(ratio, inverted=not clear)} of {of}, in turns"
        best = winner
    return best, said


def _shown(ratio: Estimate, *, inverted: bool) -> str:
    values = [ratio.value, ratio.low or ratio.value, ratio.high or ratio.value]
    if inverted:
        values = [1 / values[0], 1 / values[2], 1 / values[1]]
    value, low, high = values
    return f"{value:.2f} ({low:.2f} to {high:.2f}) of the time"


def _moved(engine: Engine, folder: Path) -> Engine:
    for path in engine.folder.iterdir():
        path.rename(folder / path.name)
    return Engine(folder)


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - began) / 1e6
