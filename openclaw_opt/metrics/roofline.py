"""roofline: the time the target cannot go below, from its row and the graph; a bound, never an estimate of the latency.

On `host` the bandwidth and the rates are measured in the same run (`backends.host_rates`). Weight-only layers multiply with
activations in int8 on a CPU, so their rate there is int8's.

bytes   every initializer the step reads once (a table that is only gathered counts its rows), and, for decode, the cache
        of `context` tokens read once
flops   2 · K · N for each matrix of a MatMul and token, attention's 4 · q_heads · head_dim · context a token and layer
time    max(bytes / bandwidth, Σ flops / peak of the layer's format)

roofline.decode_ms  one token for each of `batch` sequences with `context` tokens in the cache
roofline.ttft_ms    a prompt of `prompt` tokens
roofline.infer_ms   encoders: one batch. Convolutions are not counted, so models with them have no bound here.
roofline.decode_fraction  the part of the bandwidth's bound that decode reaches: bytes / bandwidth / time of a token. On `host` a
                          reading of memory and a burst of tokens take turns, and the interval is that of the paired ratio.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from openclaw_opt.artifacts import GraphFacts, KvShape, Measurement
from openclaw_opt.errors import MachineError
from openclaw_opt.metrics import Metric, Number
from openclaw_opt.targets import Target

if TYPE_CHECKING:
    from openclaw_opt.metrics.subject import Subject

TURNS, WARM_TURNS, BURST = 9, 1, 12
"""Readings of memory, and tokens of the burst between two of them."""
RATES = {"int8": "int8", "fp8": "fp8", "nvfp4": "fp4"}
"""Number formats whose matrices multiply at another rate than half precision."""


@dataclass(frozen=True)
class Matrix:
    """A constant operand of a MatMul. `layer` is the module's name as far as the initializer's name tells it."""

    name: str
    k: int
    n: int


@dataclass(frozen=True)
class Work:
    """What one graph reads and multiplies."""

    weight_bytes: int
    matrices: tuple[Matrix, ...]
    convolutions: int


class Roofline(Metric):
    """The bound that bandwidth and peak rate of the target set."""

    summary: ClassVar[str] = "bound on latency from the target's bandwidth and peak rate"
    depends_on: ClassVar[Literal["artifact", "target", "machine"]] = "target"
    numbers: ClassVar[tuple[Number, ...]] = (
        Number("roofline.decode_ms", "ms", "neither", "least time of a token on the target", ("decoder",)),
        Number("roofline.ttft_ms", "ms", "neither", "least time of a prompt on the target", ("decoder",)),
        Number("roofline.decode_fraction", "", "higher", "part of the bandwidth that decode reaches", ("decoder",)),
        Number("roofline.infer_ms", "ms", "neither", "least time of a batch on the target", ("encoder", "vision")),
    )

    prompt: int = Field(default=128, gt=0)
    """Tokens of the prompt, or of an encoder's text."""
    context: int = Field(default=192, gt=0)
    """Tokens in the cache while decoding."""
    batch: int = Field(default=1, gt=0)
    """Sequences at once."""

    def measure(self, subject: Subject) -> list[Measurement]:
        task, facts = subject.facts.task, subject.facts
        if subject.graph is None:
            return self.all_unmeasured(task, "there is no graph to count", subject="bound")
        work = work_of(subject)
        target, note = ceilings(subject.target, self._moved(work, facts))
        if target.bandwidth is None or not target.peak:
            why = f"bandwidth and peak rate of {target.title} are not known"
            return self.all_unmeasured(task, why, subject="bound")
        if task != "decoder" and work.convolutions:
            return self.all_unmeasured(task, f"{work.convolutions} convolutions are not counted", subject="bound")
        if task != "decoder":
            return [self._bound("roofline.infer_ms", work, facts, target, (self.prompt, 0), note)]
        return [
            self._bound("roofline.decode_ms", work, facts, target, (1, self.context), note),
            self._bound("roofline.ttft_ms", work, facts, target, (self.prompt, 0), note),
            self._fraction(subject, work, target),
        ]

    def _fraction(self, subject: Subject, work: Work, target: Target) -> Measurement:
        """Bound over time of a token, both taken in turns."""
        from openclaw_opt.numerics.stats import paired_ratio

        name = "roofline.decode_fraction"
        if subject.speed.open is None:
            return self.unmeasured(name, subject.speed.why, subject=subject.speed.subject)
        try:
            bandwidths, times = self._turns(subject, target, self._moved(work, subject.facts))
        except MachineError as error:
            return self.unmeasured(name, error.what, subject=subject.speed.subject)
        moved = self._moved(work, subject.facts)
        bounds = [1e3 * moved / bandwidth for bandwidth in bandwidths]
        ratio = paired_ratio(bounds, times)
        assert ratio is not None, "enough turns for a ratio"
        best = 1e3 * moved / max(bandwidths) / min(times)
        note = f"{moved / 2**20:.1f} MiB a token at batch {self.batch}; medians in turns; best token by best reading {best:.2f}"
        return self.row(name, ratio, subject=subject.speed.subject, note=note)

    def _moved(self, work: Work, facts: GraphFacts) -> int:
        """Bytes of one step: weights, and what the cache holds."""
        return work.weight_bytes + self.batch * cache_bytes(facts, self._cached(facts))

    def _cached(self, facts: GraphFacts) -> int:
        return max(1, min(self.context, (facts.context or self.context) - BURST))

    def _turns(self, subject: Subject, target: Target, moved: int) -> tuple[list[float], list[float]]:
        """Bytes a second and the median milliseconds of a token, one of each a turn."""
        import numpy as np

        from openclaw_opt.backends import DecoderSession
        from openclaw_opt.backends.host_rates import Reader
        from openclaw_opt.metrics.latency import timed
        from openclaw_opt.metrics.workload import sample_prompt

        assert subject.speed.open is not None
        assert target.bandwidth is not None
        reader = None if target.is_gpu else Reader(moved)
        bandwidths, times = [], []
        with subject.speed.open() as session:
            assert isinstance(session, DecoderSession)
            ids, _ = sample_prompt(subject.facts, self._cached(subject.facts), BURST, self.batch)
            follow = np.random.default_rng(1).integers(0, subject.facts.vocab or 1, (BURST, self.batch))
            for turn in range(WARM_TURNS + TURNS):
                session.prefill(ids)
                burst = [timed(partial(session.decode, token)) for token in follow]
                reading = target.bandwidth if reader is None else reader.once()
                if turn >= WARM_TURNS:
                    times.append(statistics.median(burst))
                    bandwidths.append(reading)
        if reader is not None:
            reader.close()
        return bandwidths, times

    def _bound(
        self, name: str, work: Work, facts: GraphFacts, target: Target, tokens: tuple[int, int], said: str
    ) -> Measurement:
        assert target.bandwidth is not None
        new, cached = tokens
        moved = work.weight_bytes + self.batch * cache_bytes(facts, cached)
        reading = moved / target.bandwidth
        computing = self.batch * multiply_seconds(work, facts, target, new, cached)
        which = "bandwidth" if reading >= computing else "arithmetic"
        note = f"{which} of {target.title}: {moved / 2**20:.1f} MiB, batch {self.batch}" + (f"; {said}" if said else "")
        return self.row(name, 1e3 * max(reading, computing), subject="bound", note=note)


def ceilings(target: Target, size: int) -> tuple[Target, str]:
    """The target with bandwidth and rates, measured where it is this machine's CPU; and the sentence that says so."""
    if target.is_gpu or target.bandwidth is not None:
        return target, ""
    from openclaw_opt.backends.host_rates import measure

    rates = measure(size)
    return replace(target, bandwidth=rates.bandwidth, peak=rates.peak), rates.note


def work_of(subject: Subject) -> Work:
    """What the engine reads and multiplies; of a GGUF engine the bytes are those of its file, whose scales are smaller."""
    assert subject.graph is not None
    work = read_work(subject.graph)
    files = [file for file in subject.files if file.suffix == ".gguf"]
    if not files:
        return work
    from openclaw_opt.backends.gguf import weight_bytes

    return replace(work, weight_bytes=weight_bytes(files[0]))


def cache_bytes(facts: GraphFacts, tokens: int) -> int:
    """Keys and values of `tokens` tokens of one sequence, in the type of the cache; a window bounds a layer's share."""
    return round(sum(kv.token_bytes(facts.dtype) * _seen(kv, tokens) for kv in facts.kv))


def multiply_seconds(work: Work, facts: GraphFacts, target: Target, new: int, cached: int) -> float:
    """Seconds one sequence's `new` tokens take at the peak rates; the causal half of a prompt's attention is not counted."""
    formats = {layer.name: layer.format for layer in facts.quantized}
    seconds = 0.0
    for matrix in work.matrices:
        name = _format_of(matrix.name, formats)
        rate = RATES.get(name, "fp16") if target.is_gpu or not name else "int8"
        seconds += 2 * matrix.k * matrix.n * new / target.peak.get(rate, target.peak["fp16"])
    attention = sum(4 * kv.q_heads * kv.head_dim * _seen(kv, cached + new) for kv in facts.kv)
    causal = 0.5 if cached == 0 else 1.0
    return seconds + causal * attention * new / target.peak["fp16"]


def layer_seconds(target: Target, size: int, weights: int, fmt: str) -> float:
    """A lower bound of one layer's share of a decode step: its bytes by the bandwidth or its products by the rate of its format,
    whichever is longer. `target` has both figures: see `ceilings`."""
    assert target.bandwidth is not None
    rate = RATES.get(fmt, "fp16") if target.is_gpu or not fmt else "int8"
    return max(size / target.bandwidth, 2 * weights / target.peak.get(rate, target.peak["fp16"]))


def _seen(kv: KvShape, tokens: int) -> int:
    return tokens if kv.window is None else min(tokens, kv.window)


def _format_of(matrix: str, formats: dict[str, str]) -> str:
    return next((name for layer, name in formats.items() if matrix.startswith(f"{layer}.")), "")


def read_work(folder: Path) -> Work:
    """Counts from `folder/model.onnx` alone; the weights' file is not opened."""
    import onnx

    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    users: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, set()).add(node.op_type)
    read = sum(_bytes(tensor) for name, tensor in constants.items() if users.get(name, set()) != {"Gather"})
    makers = {output: node for node in graph.node for output in node.output}
    matrices = [
        _matrix(node, constants, makers) for node in graph.node if node.op_type in ("MatMul", "Gemm", "MatMulNBits")
    ]
    convolutions = sum(node.op_type in ("Conv", "QLinearConv") for node in graph.node)
    return Work(read, tuple(matrix for matrix in matrices if matrix is not None), convolutions)


def _matrix(node: Any, constants: dict[str, Any], makers: dict[str, Any]) -> Matrix | None:
    """The constant behind a MatMul's second input, through DequantizeLinear, Cast, Transpose and the like."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    name = node.input[1]
    if node.op_type == "MatMulNBits":
        return Matrix(name, attributes["K"], attributes["N"])
    while name not in constants and name in makers and makers[name].input:
        name = makers[name].input[0]
    if name not in constants or len(constants[name].dims) != 2:
        return None
    return Matrix(name, *constants[name].dims)


def _bytes(tensor: Any) -> int:
    import math

    from onnx import TensorProto

    bits = {TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.FLOAT4E2M1: 4}.get(tensor.data_type)
    if bits is None:
        import onnx

        bits = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    count: int = math.prod(tensor.dims)
    return -(-count * bits // 8)
