"""The TensorRT dialect on ONNX Runtime CPU: accuracy of the very graph the engine is built from, without a GPU.

The decoder session keeps the static caches, [B, Hkv, context, D] a layer, and feeds present back as past.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnxruntime as ort

from openclaw_opt.artifacts import Graph, GraphFacts
from openclaw_opt.backends import DecoderSession, GenericSession
from openclaw_opt.errors import MachineError, RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from openclaw_opt.backends import Floats, Ids

CACHE_DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def open_graph(graph: Graph) -> DecoderSession | GenericSession:
    """A session on a graph of dialect `tensorrt`. Raises MachineError when ONNX Runtime CPU has no kernel for it."""
    facts = graph.facts
    session = _open(graph, facts)
    return StaticCacheSession(session, facts) if facts.task == "decoder" else GraphSession(session)


def _open(graph: Graph, facts: GraphFacts) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # The default level quantizes the activations of an INT4 MatMul to INT8, which TensorRT does not.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if any(layer.format == "fp8" for layer in facts.quantized):
        # Higher levels fuse FP8 Q/DQ into operators that have no kernel or compute something else.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        return ort.InferenceSession(str(graph.onnx), options, providers=["CPUExecutionProvider"])
    except ort.capi.onnxruntime_pybind11_state.NotImplemented as error:
        raise MachineError(
            f"ONNX Runtime CPU cannot run this graph ({facts.dtype}): {error}",
            where=str(graph.onnx),
            fix="measure it on the GPU it is built for",
        ) from error


class GraphSession(GenericSession):
    """An encoder or a vision model."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]

    def infer(self, feed: dict[str, NDArray[np.generic]]) -> dict[str, Floats]:
        values = self._session.run(self._outputs, feed)
        return {name: np.asarray(value, np.float32) for name, value in zip(self._outputs, values, strict=True)}


class StaticCacheSession(DecoderSession):
    """A decoder with static caches; `context` slots for each sequence."""

    def __init__(self, session: ort.InferenceSession, facts: GraphFacts) -> None:
        if facts.context is None:
            raise RecipeError("the graph does not state its context")
        self._session, self._facts, self._context = session, facts, facts.context
        self._outputs = [output.name for output in session.get_outputs()]
        self._past: dict[str, NDArray[np.generic]] = {}
        self._next: Ids = np.zeros(0, np.int64)

    def logits(self, ids: Ids) -> Floats:
        return self._run(ids, np.zeros(len(ids), np.int64), self._empty(len(ids)))[0]

    def prefill(self, ids: Ids, lengths: Ids | None = None) -> Floats:
        batch, length = ids.shape
        lengths = np.full(batch, length, np.int64) if lengths is None else lengths
        logits, self._past = self._run(ids, np.zeros(batch, np.int64), self._empty(batch))
        self._next = lengths.copy()
        return logits[np.arange(batch), lengths - 1]

    def decode(self, ids: Ids) -> Floats:
        logits, self._past = self._run(ids[:, None], self._next, self._past)
        self._next = self._next + 1
        return logits[:, 0]

    def _run(
        self, ids: Ids, first: Ids, past: dict[str, NDArray[np.generic]]
    ) -> tuple[Floats, dict[str, NDArray[np.generic]]]:
        length = ids.shape[1]
        if int(first.max(initial=0)) + length > self._context:
            raise RecipeError(f"{int(first.max()) + length} tokens do not fit into {self._context} cache slots")
        positions = first[:, None] + np.arange(length)
        feed = {"input_ids": ids, "position_ids": positions, **past}
        values = dict(zip(self._outputs, self._session.run(self._outputs, feed), strict=True))
        present = {
            name.replace("present", "past_key_values"): value for name, value in values.items() if name != "logits"
        }
        return np.asarray(values["logits"], np.float32), present

    def _empty(self, batch: int) -> dict[str, NDArray[np.generic]]:
        dtype = CACHE_DTYPES[self._facts.dtype]
        return {
            f"past_key_values.{index}.{part}": np.zeros((batch, kv.kv_heads, self._context, kv.head_dim), dtype)
            for index, kv in enumerate(self._facts.kv)
            for part in ("key", "value")
        }
