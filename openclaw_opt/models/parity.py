"""Does a graph compute what torch computes? ONNX Runtime on the CPU against the module, on the same inputs.

A decoder is compared on a prefill, on decode steps with the cache, on a batch of unequal lengths padded left and right,
and on the last positions of its context; encoders on unequal lengths, vision models on two batch sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state
from torch import Tensor, nn

from openclaw_opt.artifacts import Graph, Model
from openclaw_opt.errors import MachineError
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.hf import Encoder
from openclaw_opt.models.spec import DecoderSpec
from openclaw_opt.models.store import DTYPES, open_model

DECODE_STEPS = 3


@dataclass(frozen=True)
class Parity:
    """How far a graph's outputs are from torch's; relative ones are parts of the largest reference value.

    Where activations are quantized, a difference in the last bit can round one of them to the next step, which moves
    every later token of that sequence by about a step. Then `typical` tells whether the arithmetic is the same.
    """

    absolute: float
    relative: float
    """The largest of any output that counts."""
    typical: float
    """The median over tokens (or sequences, or images) of each one's largest relative difference."""
    cases: dict[str, float]
    """The largest relative difference of each case."""


@dataclass(frozen=True)
class Case:
    """Inputs of one step; `counts` marks the outputs of real tokens, bool [batch, new]."""

    name: str
    ids: Tensor
    mask: Tensor
    positions: Tensor
    counts: Tensor


def check_parity(model: Model, graph: Graph, *, seed: int = 0) -> Parity:
    """Compare the portable `graph` with the `model` it was exported from.

    Raises:
        MachineError: ONNX Runtime's CPU provider has no kernel for the graph (bfloat16, nvfp4).
    """
    facts = graph.facts
    module = open_model(model).to(DTYPES[facts.dtype])
    session = _session(graph)
    random = torch.Generator().manual_seed(seed)
    rows: dict[str, list[Tensor]] = {}
    sizes: dict[str, float] = {}
    with torch.no_grad():
        pairs = (
            _decoder_pairs(module, session, facts.context or 0, random)
            if isinstance(module, Decoder)
            else _generic_pairs(module, session, random)
        )
        for name, reference, other in pairs:
            gap = (reference.double() - other.double()).abs().flatten(1).amax(1).nan_to_num(nan=float("inf"))
            rows.setdefault(name, []).append(gap)
            sizes[name] = max(sizes.get(name, 1e-30), float(reference.abs().max()))
    return _summary({name: torch.cat(gaps) for name, gaps in rows.items()}, sizes)


def _summary(rows: dict[str, Tensor], sizes: dict[str, float]) -> Parity:
    relative = {name: gaps / sizes[name] for name, gaps in rows.items()}
    return Parity(
        absolute=max(float(gaps.max()) for gaps in rows.values()),
        relative=max(float(gaps.max()) for gaps in relative.values()),
        typical=float(torch.cat(list(relative.values())).median()),
        cases={name: float(gaps.max()) for name, gaps in relative.items()},
    )


def _session(graph: Graph) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # Without these two, int8 sums saturate on x86 without VNNI, and int4 layers round their activations to int8.
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    if any(layer.format.startswith("fp8") for layer in graph.facts.quantized):
        # The extended fusions take float8 Q/DQ for int8.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        return ort.InferenceSession(str(graph.onnx), options, providers=["CPUExecutionProvider"])
    except (state.Fail, state.NotImplemented, state.InvalidGraph) as error:
        raise MachineError(f"ONNX Runtime cannot run the graph on this CPU: {error}", where=str(graph.onnx)) from error


Pair = tuple[str, Tensor, Tensor]


def _decoder_pairs(
    module: Decoder, session: ort.InferenceSession, context: int, random: torch.Generator
) -> Iterator[Pair]:
    dtype = next(module.parameters()).dtype
    empty = [torch.zeros(2, layer.kv_heads, 0, module.spec.head_dim, dtype=dtype) for layer in module.spec.layers]
    for steps in decoder_cases(module.spec, context, random):
        ours = theirs = [cache for cache in empty for _ in range(2)]
        for step in steps:
            reference, ours = module(step.ids, step.mask, step.positions, ours)
            logits, theirs = run_decoder(session, step.ids, step.mask, step.positions, theirs)
            yield step.name, reference[step.counts], logits[step.counts]


def decoder_cases(spec: DecoderSpec, context: int, random: torch.Generator) -> Iterator[list[Case]]:
    """Sequences of steps on one cache each. Long enough to leave a window, where it is short."""
    windows = [layer.window for layer in spec.layers if layer.window is not None and layer.window <= 64]
    length = max(2, min(context - DECODE_STEPS, 8 + max(windows, default=8)))
    total = length + DECODE_STEPS
    ids = torch.randint(spec.vocab, (2, total), generator=random)
    for name, padding in (("equal", (0, 0)), ("padded right", (0, length // 2)), ("padded left", (0, -(length // 2)))):
        yield list(_steps(name, ids, length, padding))
    late = torch.arange(context - length, context).expand(2, -1)
    everything = torch.ones(2, length, dtype=torch.int64)
    yield [Case("last positions", ids[:, :length], everything, late, everything.bool())]


def _steps(name: str, ids: Tensor, length: int, padding: Sequence[int]) -> Iterator[Case]:
    """A prefill of `length` and one-token steps; a negative padding is on the left."""
    real = torch.ones_like(ids)
    for row, count in enumerate(padding):
        real[row, length - count : length] = 0 if count > 0 else 1
        real[row, : max(-count, 0)] = 0
    positions = (real.cumsum(1) - 1).clamp_min(0)
    yield Case(f"prefill {name}", ids[:, :length], real[:, :length], positions[:, :length], real[:, :length].bool())
    for at in range(length, ids.shape[1]):
        now = slice(at, at + 1)
        yield Case(f"decode {name}", ids[:, now], real[:, : at + 1], positions[:, now], real[:, now].bool())


def run_decoder(
    session: ort.InferenceSession, ids: Tensor, mask: Tensor, positions: Tensor, past: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """One step of a portable decoder graph; arguments and results as those of `Decoder.forward`."""
    feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    for i in range(len(past) // 2):
        feed |= {f"past_key_values.{i}.key": past[2 * i], f"past_key_values.{i}.value": past[2 * i + 1]}
    logits, *presents = session.run(None, {name: value.contiguous().numpy() for name, value in feed.items()})
    return torch.from_numpy(logits), [torch.from_numpy(present) for present in presents]


def _generic_pairs(module: nn.Module, session: ort.InferenceSession, random: torch.Generator) -> Iterator[Pair]:
    for name, inputs in _generic_cases(module, random):
        outputs = module(*inputs.values())
        references = outputs if isinstance(outputs, tuple) else (outputs,)
        for reference, other in zip(references, session.run(None, _arrays(inputs)), strict=True):
            yield name, reference, torch.from_numpy(other)


def _generic_cases(module: nn.Module, random: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if isinstance(module, Encoder):
        mask = torch.ones(3, 11, dtype=torch.int64)
        mask[1, 4:], mask[2, 1:] = 0, 0
        ids = torch.randint(module.spec.vocab or 2, (3, 11), generator=random)
        yield "unequal lengths", dict(zip(module.input_names, (ids, mask, torch.zeros_like(ids)), strict=False))
        yield "one token", dict(zip(module.input_names, (ids[:1, :1], mask[:1, :1], ids[:1, :1] * 0), strict=False))
        return
    image = module.spec.image  # type: ignore[union-attr]
    for batch in (1, 3):
        yield f"batch {batch}", {"pixel_values": torch.randn(batch, *image, generator=random)}  # type: ignore[misc]


def _arrays(inputs: dict[str, Tensor]) -> dict[str, NDArray[np.generic]]:
    return {name: value.contiguous().numpy() for name, value in inputs.items()}
