"""The ONNX Runtime engine: the lowered graph, its tokenizer, genai_config.json, and the receipt of a real run."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from openclaw_opt import zeros
from openclaw_opt.artifacts import Engine, EngineFacts, Graph, GraphFacts
from openclaw_opt.backends import cache_notes, genai_config, ort_receipt
from openclaw_opt.backends.host_rates import cores
from openclaw_opt.backends.ort_sessions import OrtDecoder, OrtGeneric, open_graph, session_options
from openclaw_opt.backends.realised import check_realised
from openclaw_opt.errors import MachineError, VerificationError
from openclaw_opt.graph import ir_tools
from openclaw_opt.graph.fuse_matmul_nbits import NAME as NBITS
from openclaw_opt.graph.to_onnxruntime import EXACT, with_accuracy_level
from openclaw_opt.targets import Target, target_named

Progress = Callable[[float, str], None]
"""Called with the part done (0 to 1) and what is being done."""
PROBE_TOKENS = 24
LARGEST_DEVIATION = 0.2
"""Of the largest logit. Activations in int8 cost about 1 %; at this a kernel is wrong rather than rounded."""


def build(
    graph: Graph,
    target: Target,
    folder: Path,
    progress: Progress = lambda part, text: None,
    *,
    require_realised: bool = True,
    tune: bool = False,
) -> Engine:
    """The engine in `folder`: model.onnx and its data, graph.json, assets/, and for a decoder what onnxruntime-genai reads.

    Args:
        graph: in dialect `onnxruntime`.
        target: a GPU row opens the CUDA provider, `host` without a GPU the CPU's.
        tune: time session options in turns on this machine and keep those that are faster.
        require_realised: a quantized layer that runs in another precision is an error; else it is a row of the receipt.

    Raises:
        VerificationError: the graph is of another dialect, a precision was not realised, or a kernel is wrong.
        MachineError: the target's provider cannot start here.
    """
    began, facts, device = time.monotonic(), graph.facts, _device(target)
    if facts.dialect != "onnxruntime":
        raise VerificationError(
            f"a graph of dialect {facts.dialect!r} is not for ONNX Runtime", where=str(graph.folder)
        )
    _copy(graph, folder)
    engine, lowered = Engine(folder), Graph(folder)
    if facts.task == "decoder":
        _write_genai(lowered, device)
    progress(0.3, "running it once for the receipt")
    kernels = _profiled(lowered, device)
    rows = (*ort_receipt.receipt(facts.quantized, kernels), *ort_receipt.cache_receipt(facts.kv, kernels))
    if require_realised:
        check_realised(rows, folder)
    progress(0.7, "measuring what fast kernels round")
    notes = (
        *zeros.notes(facts, (target,), "onnxruntime"),
        *cache_notes(facts),
        *genai_config.genai_notes(facts),
        *_prompt_notes(facts),
        *_rounding_notes(lowered, device),
    )
    session: dict[str, str | int | bool] = {}
    if tune:
        from openclaw_opt.backends import ort_tuning  # brings scipy, which an engine that only runs need not load

        progress(0.8, "timing session options in turns")
        session, told = ort_tuning.tuned(lowered, {} if facts.task == "decoder" else sample_feed(lowered.facts))
        notes += told
        if facts.task == "decoder":
            _write_genai(lowered, device, session)
    engine.write_facts(
        EngineFacts(
            task=facts.task,
            backend="onnxruntime",
            target=target.name,
            dialect=facts.dialect,
            dtype=facts.dtype,
            graph=facts,
            files=("model.onnx", ir_tools.DATA_FILE),
            receipt=rows,
            kernels=(ort_receipt.kernel_row(kernels, len(facts.kv)),),
            notes=notes,
            session=session,
            tool=f"onnxruntime {ort.__version__}",
            build_seconds=time.monotonic() - began,
        )
    )
    return engine


def open_engine(engine: Engine, *, threads: int | None = None) -> OrtDecoder | OrtGeneric:
    """A session on the engine. Raises MachineError when its provider, or as many threads as it is tuned for, cannot start here."""
    tuned, device = engine.facts.session, _device(target_named(engine.facts.target))
    wanted, there = int(tuned.get("intra_op_num_threads", 0)), cores()
    if wanted > there and threads is None:
        raise MachineError(
            f"the engine is tuned for {wanted} threads, and this process may use {there} cores",
            where=str(engine.folder),
            fix="build it here, or without `tune: session`",
        )
    return open_graph(Graph(engine.folder), threads=threads, device=device, tuned=tuned)


def _device(target: Target) -> str:
    return "cuda" if target.is_gpu else "cpu"


def _copy(graph: Graph, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.onnx", ir_tools.DATA_FILE):
        ir_tools.link_or_copy(graph.folder / name, folder / name)
    lowered = Graph(folder)
    lowered.write_facts(graph.facts)
    ir_tools.copy_assets(graph, lowered)


def _write_genai(graph: Graph, device: str, session: Mapping[str, str | int | bool] | None = None) -> None:
    """genai_config.json, and the tokenizer where onnxruntime-genai looks for it: beside the model."""
    inputs = [value.name for value in onnx.load(str(graph.onnx), load_external_data=False).graph.input]
    content = genai_config.genai_config(
        graph.facts, inputs, _asset(graph, "config.json"), _asset(graph, "generation_config.json"), device=device
    )
    content["model"]["decoder"]["session_options"].update(session or {})
    (graph.folder / genai_config.FILE).write_text(json.dumps(content, indent=1) + "\n")
    for name in genai_config.TOKENIZER_FILES:
        if (graph.assets / name).is_file() and not (graph.folder / name).exists():
            ir_tools.link_or_copy(graph.assets / name, graph.folder / name)


def _asset(graph: Graph, name: str) -> dict[str, Any]:
    path = graph.assets / name
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return content


def _profiled(graph: Graph, device: str) -> tuple[ort_receipt.Kernel, ...]:
    """The kernels of one run; of a decoder, of a prefill and a decode step."""
    with tempfile.TemporaryDirectory() as scratch:
        options = session_options(graph)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        if graph.facts.task == "decoder":
            with closing(OrtDecoder(graph, device=device, options=options, capacity=PROBE_TOKENS + 1)) as decoder:
                decoder.prefill(_probe(graph, decoder.capacity - 1))
                decoder.decode(np.zeros(1, np.int64))
                profile = decoder.end_profiling()
        else:
            with closing(OrtGeneric(graph, device=device, options=options)) as generic:
                generic.infer(sample_feed(graph.facts))
                profile = generic.end_profiling()
        return ort_receipt.read_kernels(profile)


def _probe(graph: Graph, length: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    assert graph.facts.vocab is not None, "a decoder's graph states its vocabulary"
    return np.random.default_rng(0).integers(0, graph.facts.vocab, (1, max(1, length)))


def sample_feed(facts: GraphFacts) -> dict[str, np.ndarray[Any, Any]]:
    """One sample: ones for ids and masks, noise for pixels."""
    feed: dict[str, np.ndarray[Any, Any]] = {}
    for name, shape in facts.batch_first_shapes.items():
        sizes = [1, *(size if isinstance(size, int) else PROBE_TOKENS for size in shape[1:])]
        pixels = name == "pixel_values"
        feed[name] = np.random.default_rng(0).random(sizes, np.float32) if pixels else np.ones(sizes, np.int64)
    return feed


def _rounding_notes(graph: Graph, device: str) -> tuple[str, ...]:
    """What the fast weight-only kernels round, against the same graph in exact arithmetic."""
    if not graph.facts.fusions.get(NBITS) or not _is_fast(graph) or graph.facts.task != "decoder":
        return ()
    with tempfile.TemporaryDirectory(dir=graph.folder.parent) as scratch:
        exact = with_accuracy_level(graph, Path(scratch), EXACT)
        wanted, got = (_probe_logits(one, device) for one in (exact, graph))
    deviation = float(np.abs(got - wanted).max() / np.abs(wanted).max())
    if not deviation <= LARGEST_DEVIATION:
        raise VerificationError(
            f"weight-only kernels deviate by {deviation:.3g} of the largest logit from exact arithmetic",
            where=str(graph.onnx),
        )
    return (
        f"weight-only kernels round activations to int8 (accuracy_level 4): on {PROBE_TOKENS} random tokens logits deviate by at "
        f"most {deviation:.2%} of the largest from exact arithmetic",
    )


def _prompt_notes(facts: GraphFacts) -> tuple[str, ...]:
    if not any(kv.cache is not None for kv in facts.kv):
        return ()
    return (
        f"{facts.cache_format} cache: ONNX Runtime's attention over a prompt is several times slower than over a float cache, of a "
        "decode step on a long context faster; `latency` says what it is at the lengths asked for",
    )


def _is_fast(graph: Graph) -> bool:
    nodes = onnx.load(str(graph.onnx), load_external_data=False).graph.node
    return any(
        a.name == "accuracy_level" and a.i != EXACT for node in nodes if node.op_type == NBITS for a in node.attribute
    )


def _probe_logits(graph: Graph, device: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    with closing(OrtDecoder(graph, device=device, capacity=PROBE_TOKENS)) as decoder:
        return decoder.logits(_probe(graph, min(PROBE_TOKENS, decoder.context)))
