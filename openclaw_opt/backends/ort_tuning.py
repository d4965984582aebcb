"""`tune: session`: ONNX Runtime's session options, one after the other, each timed in turns with the best so far on this machine.

An option is kept only when the ratio of times is above 1 at the lower end of its 95 % interval: a busy machine keeps the defaults.
What counts for a decoder is a prefill of PROMPT tokens and NEW · the median of its steps; for other models one batch. None of the
options changes a result: threads may reorder sums, which the build's verification bounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np

from openclaw_opt.artifacts import Graph
from openclaw_opt.backends.host_rates import cores
from openclaw_opt.backends.ort_sessions import OrtDecoder, OrtGeneric, session_options
from openclaw_opt.numerics.stats import paired_ratio

Feed = dict[str, np.ndarray[Any, Any]]
Options = dict[str, str | int | bool]
PROMPT, NEW, STEPS = 64, 64, 8
ROUNDS, WARMUP = 9, 2


def candidates() -> Iterator[Options]:
    """What is tried, in this order; each on top of what was kept before it."""
    if cores() > 1:
        yield {"intra_op_num_threads": cores()}
        yield {"intra_op_num_threads": max(1, cores() // 2)}
    yield {"session.intra_op.allow_spinning": "0"}
    yield {"session.dynamic_block_base": "4"}
    yield {"enable_cpu_mem_arena": False}
    yield {"enable_mem_pattern": False}
    yield {"session.set_denormal_as_zero": "1"}


def tuned(graph: Graph, feed: Feed) -> tuple[Options, tuple[str, ...]]:
    """The options to keep for this graph here, and a sentence on each that was tried. `feed` is one batch; decoders need none."""
    best: Options = {}
    told = []
    for change in candidates():
        ratio = paired_ratio(*_turns(graph, feed, best, best | change))
        assert ratio is not None, "enough rounds for a ratio"
        kept = ratio.low is not None and ratio.low > 1
        best = best | change if kept else best
        name, value = next(iter(change.items()))
        interval = "" if ratio.low is None else f" ({ratio.low:.2f} to {ratio.high:.2f})"
        told.append(
            f"tune: {name} = {value}: {ratio.value:.2f}{interval} times as fast, {'kept' if kept else 'not kept'}"
        )
    return best, tuple(told)


def _turns(graph: Graph, feed: Feed, one: Options, other: Options) -> tuple[list[float], list[float]]:
    """Milliseconds of both, round by round; which goes first alternates."""
    with closing(_open(graph, one)) as first, closing(_open(graph, other)) as second:
        runs = [(_run(first, feed), list[float]()), (_run(second, feed), list[float]())]
        times = runs[0][1], runs[1][1]
        for turn in range(WARMUP + ROUNDS):
            for run, found in runs:
                spent = run()
                if turn >= WARMUP:
                    found.append(spent)
            runs.reverse()
    return times


def _open(graph: Graph, options: Options) -> OrtDecoder | OrtGeneric:
    made = session_options(graph, tuned=options)
    if graph.facts.task == "decoder":
        return OrtDecoder(graph, options=made, capacity=PROMPT + STEPS + 1)
    return OrtGeneric(graph, options=made)


def _run(session: OrtDecoder | OrtGeneric, feed: Feed) -> Callable[[], float]:
    random = np.random.default_rng(0)
    if isinstance(session, OrtDecoder):
        ids = random.integers(0, session.facts.vocab or 1, (1, max(1, min(PROMPT, session.capacity - STEPS - 1))))

        def generate() -> float:
            first = _timed(lambda: session.prefill(ids))
            steps = [
                _timed(lambda: session.decode(ids[:, 0])) for _ in range(min(STEPS, session.capacity - ids.shape[1]))
            ]
            return first + NEW * statistics.median(steps)

        return generate
    return lambda: _timed(lambda: session.infer(feed))


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - began) / 1e6
