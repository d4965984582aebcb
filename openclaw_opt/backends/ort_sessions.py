"""ONNX Runtime sessions over a graph folder of any dialect: the ONNX Runtime engine, and the accuracy of every other.

Three session options decide whether the numbers are right, and are set here for every session:

    * `session.x64quantprecision=1`. On x86 without VNNI, MLAS multiplies unsigned activations with *signed* weights by
      vpmaddubsw, whose pairwise int16 sums saturate: errors of about 10 % at full-range int8. With the option signed
      weights are turned into unsigned ones on load, and the sums are exact.
    * `session.qdq_matmulnbits_accuracy_level=0`. A dequantized int4 weight before a MatMul becomes MatMulNBits on load, by
      default with activations rounded to int8, which no such graph says. A lowered graph's own level is not touched.
    * A graph with float8 runs at ORT_ENABLE_BASIC: the extended fusions take float8 Q/DQ for int8 and are wrong.

ONNX Runtime has no kernels for FP4: such a graph is opened as its exact twin (`graph.emulate_fp4`), in a temporary folder that
goes with the session.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from openclaw_opt.artifacts import Graph
from openclaw_opt.backends import GenericSession
from openclaw_opt.backends.ort_caches import CACHES, Cache
from openclaw_opt.backends.stepping import Placed, SteppingDecoder, check_length
from openclaw_opt.errors import MachineError, RecipeError
from openclaw_opt.graph.emulate_fp4 import emulate, has_fp4

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
QUIET = 3
"""ONNX Runtime's severity `error`: its warnings about hardware-specific saved graphs and missing GPUs are ours to say."""


def session_options(
    graph: Graph, *, threads: int | None = None, tuned: Mapping[str, str | int | bool] | None = None
) -> ort.SessionOptions:
    """Options under which the graph's numbers are right; `threads` None lets ONNX Runtime take every physical core.

    Args:
        tuned: options by ONNX Runtime's names; those with a dot are config entries.
    """
    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    for name, value in (tuned or {}).items():
        if "." in name:
            options.add_session_config_entry(name, str(value))
        else:
            setattr(options, name, value)
    if threads is not None:
        options.intra_op_num_threads = threads
    if has_float8(graph):
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return options


def has_float8(graph: Graph) -> bool:
    """Does any layer of the graph compute in float8?"""
    return any(layer.format.startswith(("fp8", "nvfp4", "mxfp8")) for layer in graph.facts.quantized)


def providers(device: str) -> list[str]:
    """Execution providers for `cpu` or `cuda`. Raises MachineError for `cuda` where there is no CUDA device."""
    if device == "cpu":
        return [CPU]
    if CUDA not in ort.get_available_providers():
        raise MachineError("this onnxruntime has no CUDA provider", fix="pip install onnxruntime-gpu")
    return [CUDA, CPU]


def open_runtime(
    graph: Graph, *, device: str = "cpu", options: ort.SessionOptions | None = None
) -> ort.InferenceSession:
    """The graph in ONNX Runtime. Raises MachineError where it has no kernel for it or cannot get the memory."""
    chosen = options or session_options(graph)
    if not has_fp4(graph.facts):
        return _opened(graph, graph.onnx, device, chosen)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="openclaw-opt-fp4-")))
        session = _opened(graph, emulate(graph, folder).onnx, device, chosen)
        # The runtime may map the weights' file for as long as the session is there.
        weakref.finalize(session, stack.pop_all().close)
        return session


def _opened(graph: Graph, path: Path, device: str, options: ort.SessionOptions) -> ort.InferenceSession:
    """A session on `path`, which holds the graph or its twin."""
    try:
        session = ort.InferenceSession(str(path), options, providers=providers(device))
    except ort_errors() as error:
        raise MachineError(
            f"ONNX Runtime {ort.__version__} cannot open the graph: {error}", where=str(graph.onnx)
        ) from error
    if device == "cuda" and CUDA not in session.get_providers():
        raise MachineError(
            "ONNX Runtime could not start its CUDA provider", fix="check the driver, CUDA and cuDNN versions"
        )
    return session


def ort_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises when a graph cannot be opened or run."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (state.Fail, state.NotImplemented, state.InvalidGraph, state.RuntimeException, state.InvalidArgument)


class OrtGeneric(GenericSession):
    """An encoder or a vision model."""

    def __init__(self, graph: Graph, *, device: str = "cpu", options: ort.SessionOptions | None = None) -> None:
        self._session: ort.InferenceSession | None = open_runtime(graph, device=device, options=options)
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._inputs = {value.name: NUMPY.get(value.type) for value in self._session.get_inputs()}

    def close(self) -> None:
        self._session = None

    def end_profiling(self) -> Path:
        """The file with what ran since the session was opened; its options must have enabled it."""
        return _profile(self._session)

    def infer(self, feed: dict[str, NDArray[np.generic]]) -> dict[str, Floats]:
        """Arrays by input name -> every output as float32. Raises RecipeError for a missing or unknown input."""
        if feed.keys() != self._inputs.keys():
            raise RecipeError(f"the graph takes {sorted(self._inputs)}, not {sorted(feed)}")
        assert self._session is not None, "the session is closed"
        typed = {name: np.asarray(value, self._inputs[name]) for name, value in feed.items()}
        results = self._session.run(self._outputs, typed)
        return {name: np.asarray(value, np.float32) for name, value in zip(self._outputs, results, strict=True)}


class OrtDecoder(SteppingDecoder):
    """A decoder graph of any dialect with its cache inside the runtime.

    Args:
        graph: its facts say the dialect, the caches' shapes and the context.
        device: `cpu` or `cuda`.
        options: from `session_options`; None for every physical core.
        capacity: tokens a sequence may grow to after `prefill`; less than the context saves memory.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        device: str = "cpu",
        options: ort.SessionOptions | None = None,
        capacity: int | None = None,
    ) -> None:
        super().__init__(graph.facts, capacity)
        self._device = device
        self._session: ort.InferenceSession | None = open_runtime(graph, device=device, options=options)
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._vocab = int(self._session.get_outputs()[0].shape[-1])
        self._cache = CACHES[self.facts.dialect](self.facts, device)

    def close(self) -> None:
        self._session = None
        self._cache.clear()

    def end_profiling(self) -> Path:
        """The file with what ran since the session was opened; its options must have enabled it."""
        return _profile(self._session)

    def logits(self, ids: Ids) -> Floats:
        """Every position's logits: [batch, length] int64 -> [batch, length, vocab] float32; the cache stays as it is."""
        cache = CACHES[self.facts.dialect](self.facts, self._device)
        batch, length = ids.shape
        check_length(length, self.context, "the graph's context")
        cache.start(batch, self.context if self.facts.dialect == "tensorrt" else length)
        positions = np.broadcast_to(np.arange(length), ids.shape)
        return self._step(cache, ids, np.ones_like(ids), positions)

    def _start(self, batch: int) -> None:
        self._cache.start(batch, self.context if self.facts.dialect == "tensorrt" else self.capacity)

    def _placed(self, ids: Ids, lengths: Ids) -> Placed:
        return self._cache.placed(ids, lengths)

    def _grown_mask(self, mask: Ids, lengths: Ids) -> Ids:
        return self._cache.grown_mask(mask, lengths)

    def _last_logits(self, ids: Ids, mask: Ids, positions: Ids, columns: Ids) -> Floats:
        logits = self._step(self._cache, ids, mask, positions)
        return logits[np.arange(len(ids)), columns]  # a copy

    def _step(self, cache: Cache, ids: Ids, mask: Ids, positions: Ids) -> Floats:
        """Logits of every position; of a cache that is written in place they lie in a buffer that its next step writes to."""
        assert self._session is not None, "the session is closed"
        binding = self._bound(cache)
        for name, value in (("input_ids", ids), ("attention_mask", mask), ("position_ids", positions)):
            if name in self._inputs:
                binding.bind_cpu_input(name, np.ascontiguousarray(value, np.int64))
        if not cache.in_place:
            binding.bind_output("logits", "cpu")
            self._session.run_with_iobinding(binding)
            values = binding.get_outputs()
            cache.keep(values[1:])
            return cast("Floats", np.asarray(values[0].numpy(), np.float32))
        if cache.logits is None or cache.logits.shape[:2] != ids.shape:
            # Bound once for all steps of a shape: of a small model, asking for outputs and wrapping them is a tenth of a step.
            cache.logits = np.empty((*ids.shape, self._vocab), np.float32)
            binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(cache.logits))
        self._session.run_with_iobinding(binding)
        return cache.logits

    def _bound(self, cache: Cache) -> Any:
        """The caches bound; what is written where it was read stays bound from step to step."""
        assert self._session is not None, "the session is closed"
        if cache.binding is None:
            binding = self._session.io_binding()
            # The first output, before the caches: `get_outputs` follows the order of binding.
            binding.bind_output("logits", "cpu")
            cache.bind(binding)
            if not cache.in_place:
                return binding
            cache.binding, cache.logits = binding, None
        return cache.binding


def _profile(session: ort.InferenceSession | None) -> Path:
    """The profile of a session whose options enabled one; it ends with this call."""
    assert session is not None, "the session is closed"
    return Path(session.end_profiling())


def open_graph(
    graph: Graph,
    *,
    threads: int | None = None,
    device: str = "cpu",
    tuned: Mapping[str, str | int | bool] | None = None,
) -> OrtDecoder | OrtGeneric:
    """The session that fits the graph's task."""
    options = session_options(graph, threads=threads, tuned=tuned)
    if graph.facts.task == "decoder":
        return OrtDecoder(graph, device=device, options=options)
    return OrtGeneric(graph, device=device, options=options)
