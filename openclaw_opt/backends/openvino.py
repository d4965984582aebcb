"""The OpenVINO engine: openvino_model.xml and .bin as optimum-intel and OpenVINO's own servers open them.

It starts from the portable graph, which ONNX Runtime runs too: OpenVINO fuses norms, rotation and attention when it compiles, and
multiplies with low-bit weights where a dequantized constant is all that a MatMul reads. Two things are proven before it counts as built:

    * the same file, compiled to compute in float32 with a float32 cache (EXACT), gives the graph's outputs (`exact_twin`; compared
      by the pipeline);
    * every quantized layer's product reads weights of few bits, by the compiled model itself (the receipt).

What is left is what OpenVINO rounds for speed: activations to int8 in groups, the cache to half precision (or to 8 or 4 bits, where the
recipe asks for it), everything to bfloat16 where the CPU multiplies that. It is measured, against the proof and as accuracy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from openclaw_opt import zeros
from openclaw_opt.artifacts import SCALE_BITS, Engine, EngineFacts, Graph, GraphFacts, KvShape
from openclaw_opt.backends import cache_notes
from openclaw_opt.backends.realised import check_realised
from openclaw_opt.errors import MachineError, RecipeError, VerificationError
from openclaw_opt.formats import format_named
from openclaw_opt.models.spec import DecoderSpec
from openclaw_opt.targets import Target

Progress = Callable[[float, str], None]
Options = dict[str, str | int | bool]
PACKAGE = "openvino"
FIX = "pip install 'openclaw-opt[openvino]'"
FILE, WEIGHTS = "openvino_model.xml", "openvino_model.bin"
CACHE, GROUPS, PRECISION = "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "INFERENCE_PRECISION_HINT"
EXACT: Options = {PRECISION: "f32", GROUPS: 0, CACHE: "f32"}
CACHES = {None: "f16", "int8": "u8", "int4": "u4"}
"""Format of a decoder's cache → OpenVINO's word; without one half precision, as no recipe asked for its own default of 8 bits."""


def missing() -> str:
    """Why this machine cannot run OpenVINO; empty if it can."""
    return "" if find_spec(PACKAGE) else f"{PACKAGE} not installed"


def build(
    graph: Graph,
    target: Target,
    folder: Path,
    progress: Progress = lambda part, text: None,
    *,
    require_realised: bool = True,
) -> Engine:
    """The engine in `folder`: openvino_model.xml, openvino_model.bin, engine.json, graph.json, assets/.

    Args:
        graph: a portable one.
        target: a CPU.
        require_realised: a quantized layer whose weights OpenVINO expands is an error; else it is a row of the receipt.

    Raises:
        MachineError: the package is missing, or OpenVINO refuses the model.
        RecipeError: a layer's format is none of OpenVINO's.
        VerificationError: the graph is of another dialect, or a precision was not realised.
    """
    if why := missing():
        raise MachineError(why, fix=FIX)
    began, facts = time.monotonic(), graph.facts
    if facts.dialect != "portable":
        raise VerificationError(f"a graph of dialect {facts.dialect!r} is not for OpenVINO", where=str(graph.folder))
    _refuse_others(facts)
    from openclaw_opt.backends import openvino_receipt

    progress(0.1, "writing OpenVINO's model")
    held = _cache_of(facts)
    options: Options = {CACHE: CACHES[held]} if facts.task == "decoder" else {}
    _write(graph, folder, options)
    progress(0.6, "compiling it for the receipt")
    model = _compiled(folder / FILE, options)
    nodes = openvino_receipt.executed(model)
    rows = openvino_receipt.receipt(facts.quantized, nodes)
    if held is not None:
        rows += openvino_receipt.cache_receipt(model, facts, held)
    if require_realised:
        check_realised(rows, folder)
    layers = len(facts.kv)
    engine = Engine(folder)
    engine.write_facts(
        EngineFacts(
            task=facts.task,
            backend="openvino",
            target=target.name,
            dialect=facts.dialect,
            dtype=facts.dtype,
            graph=facts.model_copy(update={"kv": tuple(_held(kv, held) for kv in facts.kv)}),
            files=(FILE, WEIGHTS),
            receipt=rows,
            kernels=(openvino_receipt.kernel_row(nodes, layers),),
            notes=(
                *zeros.notes(facts, (target,), "openvino"),
                *cache_notes(facts),
                *openvino_receipt.attention_note(nodes, layers),
                *_rounding(model, facts, options),
            ),
            session=options,
            tool=_tool(),
            build_seconds=time.monotonic() - began,
        )
    )
    return engine


def _refuse_others(facts: GraphFacts) -> None:
    """Formats that OpenVINO would compute otherwise than they say. Raises RecipeError."""
    others = {layer.format for layer in facts.quantized if "openvino" not in format_named(layer.format).backends}
    others |= {f"an {kv.cache} cache" for kv in facts.kv if kv.cache is not None}
    if others:
        what = f"OpenVINO does not realise {' and '.join(sorted(others))}"
        raise RecipeError(what, where="build.backend", fix="backend: onnxruntime")


def exact_twin(engine: Engine, folder: Path) -> Engine:
    """The same file in `folder`, opened to compute in float32 throughout: what must agree with the graph."""
    from openclaw_opt.graph import ir_tools

    folder.mkdir(parents=True, exist_ok=True)
    for name in engine.facts.files:
        ir_tools.link_or_copy(engine.folder / name, folder / name)
    twin = Engine(folder)
    graph = engine.facts.graph
    float_cache = graph.model_copy(update={"kv": tuple(_held(kv, None) for kv in graph.kv)})
    twin.write_facts(engine.facts.model_copy(update={"session": EXACT, "graph": float_cache}))
    return twin


def open_engine(engine: Engine, *, threads: int | None = None, watch: Callable[[Any], None] | None = None) -> Any:
    """A session on the engine; `watch` is told of the request after each run, which then counts the time of its nodes.

    Raises MachineError when OpenVINO is not here or refuses the file.
    """
    if why := missing():
        raise MachineError(why, fix=FIX)
    from openclaw_opt.backends.openvino_sessions import opened

    facts, file = engine.facts, engine.folder / FILE
    options = facts.session if watch is None else {**facts.session, "PERF_COUNT": True}
    return opened(file, facts.graph, options, threads=threads, watch=watch)


def _write(graph: Graph, folder: Path, options: Options) -> None:
    """The model, with the options that any runtime which opens it is to take, and what goes beside it."""
    import openvino as ov

    from openclaw_opt.backends.openvino_model import converted
    from openclaw_opt.graph import ir_tools

    folder.mkdir(parents=True, exist_ok=True)
    model = converted(graph)
    for name, value in options.items():
        model.set_rt_info(value, ["runtime_options", name])
    ov.save_model(model, folder / FILE, compress_to_fp16=False)
    written = Graph(folder)
    written.write_facts(graph.facts)
    ir_tools.copy_assets(graph, written)


def _cache_of(facts: GraphFacts) -> str | None:
    """Format of the cache that the recipe asks for; None for float."""
    spec = DecoderSpec.model_validate(facts.decoder) if facts.decoder else None
    return None if spec is None or spec.cache is None else spec.cache.format


def _held(kv: KvShape, cache: str | None) -> KvShape:
    """A layer's cache as OpenVINO holds it: of each token and head a float32 scale and zero point for all channels."""
    block = None if cache is None else kv.head_dim
    return kv.model_copy(update={"cache": cache, "block": block, "scale_bits": 64 if block else SCALE_BITS})


def _compiled(file: Path, options: Options) -> Any:
    """The compiled model. Raises VerificationError where OpenVINO holds its cache otherwise than asked."""
    from openclaw_opt.backends.openvino_model import read
    from openclaw_opt.backends.openvino_sessions import compiled

    # Without `options`: a runtime that knows nothing of us must find them in the file.
    model = compiled(read(file), file, {})
    if CACHE in options and (held := model.get_property(CACHE).get_type_name()) != options[CACHE]:
        raise VerificationError(f"OpenVINO holds its cache in {held}, not in {options[CACHE]}", where=str(file))
    return model


def _rounding(model: Any, facts: GraphFacts, options: Options) -> tuple[str, ...]:
    """What OpenVINO rounds on this CPU, as it says itself."""
    said, groups = [], int(model.get_property(GROUPS))
    if groups and facts.quantized:
        said.append(
            f"where the CPU has instructions for it, OpenVINO rounds what goes into weight-only products to int8, {groups} numbers to a "
            f"scale ({GROUPS})"
        )
    if (precision := model.get_property(PRECISION).get_type_name()) != "f32":
        said.append(f"OpenVINO computes in {precision} on this CPU ({PRECISION})")
    if CACHE in options:
        said.append(f"the file asks OpenVINO for a cache in {options[CACHE]} ({CACHE}); its own default is u8")
    return tuple(said)


def _tool() -> str:
    from importlib.metadata import version

    return f"{PACKAGE} {version(PACKAGE)}"
