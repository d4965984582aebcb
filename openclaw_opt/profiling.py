"""Where an artifact's time goes: a trace that Perfetto opens, and the ten dearest layers. `openclaw-opt profile ARTIFACT`.

ONNX Runtime's own profile holds every kernel by its node, and a node starts with the name of its layer; OpenVINO counts the time of each
node of its compiled model, which bears the same name; llama.cpp tells a callback of each node, named as llama.cpp names it; PyTorch's
profiler gets a range for each layer of a Model. The profiled run is slower than an unprofiled one: shares are what it is for.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openclaw_opt.artifacts import Engine, Graph, GraphFacts, Model
from openclaw_opt.backends import DecoderSession, GenericSession
from openclaw_opt.errors import MachineError, RecipeError

TRACE = "trace.json"
SHOWN = 10
PROMPT, STEPS = 64, 16
KERNEL = "_kernel_time"


@dataclass(frozen=True)
class Row:
    """One layer: kernels that ran, microseconds of all, and its share of the profiled run."""

    layer: str
    kernels: tuple[str, ...]
    microseconds: float
    share: float


def profile(folder: Path, trace: Path) -> list[Row]:
    """Run the artifact once (a prefill of PROMPT tokens and STEPS steps), write `trace`, give every layer, dearest first.

    Raises:
        RecipeError: the folder holds no engine and no model.
        MachineError: its runtime tells no times of nodes, or cannot run here.
    """
    if (folder / Engine.facts_file).is_file():
        facts = Engine(folder).facts
        if facts.backend == "tensorrt":
            raise MachineError("a TensorRT engine is profiled on its GPU, and this machine has none", where=str(folder))
        told = {"gguf": _llama, "openvino": _openvino}.get(facts.backend, _onnxruntime)
        events = told(Engine(folder))
        rows = layers_of(events)
    elif (folder / Model.facts_file).is_file():
        events = _torch(Model(folder))
        rows = _ranges(events)
    else:
        raise RecipeError(
            "the folder holds no engine and no model", where=str(folder), fix="give the folder of a build"
        )
    trace.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n")
    return rows


def _onnxruntime(engine: Engine) -> list[dict[str, Any]]:
    from openclaw_opt.backends.ort_sessions import OrtDecoder, OrtGeneric, session_options

    graph = Graph(engine.folder)
    with tempfile.TemporaryDirectory() as scratch:
        options = session_options(graph, tuned=engine.facts.session)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(scratch) / "profile")
        kind: type[OrtDecoder] | type[OrtGeneric] = OrtDecoder if engine.facts.task == "decoder" else OrtGeneric
        with closing(kind(graph, options=options)) as session:
            _run(session, graph.facts)
            events: list[dict[str, Any]] = json.loads(session.end_profiling().read_text())
    return [event | {"name": event["name"].removesuffix(KERNEL)} for event in events]


def _llama(engine: Engine) -> list[dict[str, Any]]:
    """On one thread, so that a node's time is its work and not the wait for another thread."""
    from openclaw_opt.backends.gguf import FILE
    from openclaw_opt.backends.llama_cpp import LlamaDecoder, library
    from openclaw_opt.backends.llama_profile import NodeTimes

    facts, times = engine.facts.graph, NodeTimes(library())
    context = min(facts.context or PROMPT + STEPS, PROMPT + STEPS)
    file = engine.folder / FILE
    with closing(LlamaDecoder(file, context=context, vocab=facts.vocab or 0, threads=1, watch=times)) as session:
        _run(session, facts)
    return times.events


def _openvino(engine: Engine) -> list[dict[str, Any]]:
    from openclaw_opt.backends import openvino
    from openclaw_opt.backends.openvino_profile import NodeTimes

    times = NodeTimes()
    with closing(openvino.open_engine(engine, watch=times)) as session:
        _run(session, engine.facts.graph)
    return times.events


def layers_of(events: list[dict[str, Any]]) -> list[Row]:
    """Kernels summed by the layer their node is named after, dearest first. Pure."""
    spent: dict[str, float] = defaultdict(float)
    kinds: dict[str, dict[str, None]] = defaultdict(dict)
    for event in events:
        kind = event.get("args", {}).get("op_name")
        if event.get("cat") != "Node" or not kind:
            continue
        layer = event["name"].split("/")[0] or kind
        spent[layer] += event["dur"]
        kinds[layer][kind] = None
    return _sorted({layer: (tuple(kinds[layer]), time) for layer, time in spent.items()})


def _torch(model: Model) -> list[dict[str, Any]]:
    import torch
    from torch import nn

    from openclaw_opt.backends.torch_sessions import open_model_session
    from openclaw_opt.models.export import graph_facts
    from openclaw_opt.models.spec import read_facts

    def named(module: nn.Module, name: str) -> None:
        ranges: list[Any] = []

        def begin(*_: Any) -> None:
            ranges.append(torch.profiler.record_function(f"layer {name}"))
            ranges[-1].__enter__()

        def end(*_: Any) -> None:
            ranges.pop().__exit__(None, None, None)

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)

    facts = read_facts(model)
    session = open_model_session(model, watch=named)
    with closing(session), torch.profiler.profile() as profiler:
        _run(session, graph_facts(facts, "float32", facts.spec.context))
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / TRACE
        profiler.export_chrome_trace(str(file))
        events: list[dict[str, Any]] = json.loads(file.read_text())["traceEvents"]
    return events


def _ranges(events: list[dict[str, Any]]) -> list[Row]:
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        if event.get("cat") == "user_annotation" and str(event["name"]).startswith("layer "):
            spent[event["name"].removeprefix("layer ")] += event["dur"]
    return _sorted({layer: (("PyTorch",), time) for layer, time in spent.items()})


def _sorted(found: dict[str, tuple[tuple[str, ...], float]]) -> list[Row]:
    whole = sum(time for _, time in found.values()) or 1.0
    rows = [Row(layer, kernels, time, time / whole) for layer, (kernels, time) in found.items()]
    return sorted(rows, key=lambda row: -row.microseconds)


def _run(session: DecoderSession | GenericSession, facts: GraphFacts) -> None:
    from openclaw_opt.metrics.workload import sample_feed, sample_prompt

    if isinstance(session, GenericSession):
        session.infer(sample_feed(facts, PROMPT))
        return
    ids, steps = sample_prompt(facts, PROMPT, STEPS)
    session.prefill(ids)
    for _ in range(steps):
        session.decode(ids[:, 0])
