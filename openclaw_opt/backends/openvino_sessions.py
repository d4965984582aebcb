"""OpenVINO's own model files as sessions: a decoder with its cache as state, or arrays in and arrays out.

A decoder's head multiplies the positions alone whose logits are wanted (`openvino_model.last_rows`), as OpenVINO's own generation
does: of a prompt that is the last one. Scoring whole sequences has a request of its own, so the cache of a running one stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openclaw_opt.artifacts import GraphFacts
from openclaw_opt.backends import GenericSession
from openclaw_opt.backends.host_rates import cores
from openclaw_opt.backends.openvino_model import ROWS, last_rows, read, said
from openclaw_opt.backends.stepping import Placed, SteppingDecoder, check_length, one_column_more, padding_first
from openclaw_opt.errors import MachineError, RecipeError

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Options = Mapping[str, str | int | bool]
Watch = Callable[[Any], None]
DEVICE = "CPU"
LATENCY: dict[str, str | int | bool] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
"""One request at a time on every core."""


def compiled(model: Any, file: Path, options: Options, threads: int | None = None) -> Any:
    """An `openvino.CompiledModel` for this CPU; `threads` None takes every core this process may use.

    Raises MachineError with OpenVINO's words.
    """
    import openvino as ov

    asked = {**LATENCY, "INFERENCE_NUM_THREADS": threads or cores(), **options}
    try:
        return ov.Core().compile_model(model, DEVICE, asked)
    except RuntimeError as error:
        raise MachineError(
            f"OpenVINO {ov.__version__} cannot open the model: {said(error)}", where=str(file)
        ) from error


def opened(
    file: Path, facts: GraphFacts, options: Options, *, threads: int | None = None, watch: Watch | None = None
) -> OvDecoder | OvGeneric:
    """A session on OpenVINO's own file.

    Args:
        file: openvino_model.xml, with its .bin beside it.
        facts: of the graph that it was made from.
        options: OpenVINO's properties, by its own names.
        threads: of a step; None for every core this process may use.
    """
    model = read(file)
    if facts.task != "decoder":
        return OvGeneric(compiled(model, file, options, threads), facts, watch)
    last_rows(model)
    return OvDecoder(compiled(model, file, options, threads), facts, watch)


class OvDecoder(SteppingDecoder):
    """A decoder in OpenVINO.

    Args:
        model: an `openvino.CompiledModel` with the input `rows`.
        facts: of the graph that it was made from.
        watch: told of the request after each run, e.g. an `openvino_profile.NodeTimes`.
    """

    def __init__(self, model: Any, facts: GraphFacts, watch: Watch | None = None) -> None:
        super().__init__(facts)
        self._model, self._watch = model, watch
        self._request = model.create_infer_request()
        self._scoring: Any = None
        self._inputs = {name for value in model.inputs for name in value.get_names()}

    def close(self) -> None:
        self._request = self._scoring = self._model = None

    def logits(self, ids: Ids) -> Floats:
        """Every position's logits: [batch, length] int64 -> [batch, length, vocab] float32; the cache stays as it is."""
        check_length(ids.shape[1], self.context, "the engine's context")
        if self._scoring is None:
            self._scoring = self._model.create_infer_request()
        self._scoring.reset_state()
        columns = np.arange(ids.shape[1])
        return self._run(self._scoring, ids, np.ones_like(ids), np.broadcast_to(columns, ids.shape), columns)

    def _start(self, batch: int) -> None:
        self._request.reset_state()

    def _placed(self, ids: Ids, lengths: Ids) -> Placed:
        return padding_first(ids, lengths)

    def _grown_mask(self, mask: Ids, lengths: Ids) -> Ids:
        return one_column_more(mask)

    def _last_logits(self, ids: Ids, mask: Ids, positions: Ids, columns: Ids) -> Floats:
        # With padding first, every sequence's last token stands in the last column.
        return self._run(self._request, ids, mask, positions, columns[:1])[:, 0]

    def _run(self, request: Any, ids: Ids, mask: Ids, positions: Ids, rows: Ids) -> Floats:
        _check_ids(ids, self.facts)
        feed = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
            "beam_idx": np.arange(len(ids), dtype=np.int32),
            ROWS: rows,
        }
        wanted = {name: np.ascontiguousarray(value) for name, value in feed.items() if name in self._inputs}
        found = request.infer(wanted, share_inputs=True, share_outputs=True)
        if self._watch is not None:
            self._watch(request)
        return np.array(next(iter(found.values())), np.float32)


class OvGeneric(GenericSession):
    """An encoder or a vision model in OpenVINO; arguments as of OvDecoder, of a model as it is."""

    def __init__(self, model: Any, facts: GraphFacts, watch: Watch | None = None) -> None:
        self._model, self._facts, self._watch = model, facts, watch
        self._request = model.create_infer_request()
        self._inputs = {value.get_any_name(): value.get_element_type().to_dtype() for value in model.inputs}
        self._outputs = [value.get_any_name() for value in model.outputs]

    def close(self) -> None:
        self._request = self._model = None

    def infer(self, feed: dict[str, NDArray[np.generic]]) -> dict[str, Floats]:
        """Arrays by input name -> every output as float32. Raises RecipeError for a missing or unknown input."""
        if feed.keys() != self._inputs.keys():
            raise RecipeError(f"the model takes {sorted(self._inputs)}, not {sorted(feed)}")
        if "input_ids" in feed:
            _check_ids(np.asarray(feed["input_ids"], np.int64), self._facts)
        typed = {name: np.ascontiguousarray(value, self._inputs[name]) for name, value in feed.items()}
        found = self._request.infer(typed, share_inputs=True, share_outputs=True)
        if self._watch is not None:
            self._watch(self._request)
        return {name: np.array(value, np.float32) for name, value in zip(self._outputs, found.values(), strict=True)}


def _check_ids(ids: Ids, facts: GraphFacts) -> None:
    """OpenVINO reads zeros where the embedding has no row, and says nothing. Raises RecipeError."""
    if facts.vocab is not None and (ids.min() < 0 or ids.max() >= facts.vocab):
        raise RecipeError(f"token ids reach from {ids.min()} to {ids.max()}; the model has 0 to {facts.vocab - 1}")
