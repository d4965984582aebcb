"""A model folder → the portable ONNX graph, written, checked and described."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from torch import nn

from openclaw_opt.artifacts import FloatType, Graph, GraphFacts, LayerFormat, Model
from openclaw_opt.errors import VerificationError
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.emit import save
from openclaw_opt.models.emit_decoder import OPSET, emit_decoder
from openclaw_opt.models.sizes import caches
from openclaw_opt.models.spec import DecoderSpec, HfSpec, ModelFacts, read_facts
from openclaw_opt.models.store import DTYPES, copy_assets, open_model


def export_graph(model: Model, folder: Path, *, dtype: FloatType, context: int | None = None) -> Graph:
    """Write model.onnx, model.onnx.data, graph.json and assets/ into `folder`.

    Args:
        dtype: of weights that are not quantized, of activations and of the cache; outputs are float32, caches are not.
        context: longest sequence the graph must be right for, in tokens; None for what the checkpoint states.

    Raises:
        VerificationError: onnx.checker refuses the graph.
    """
    facts, module = read_facts(model), open_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    graph = Graph(folder)
    limit = _context(facts, context)
    save(_emit(module, dtype, limit), folder)
    check(graph)
    graph.write_facts(graph_facts(facts, dtype, limit))
    copy_assets(model.assets, graph.assets, facts.task)
    return graph


def _emit(module: nn.Module, dtype: FloatType, context: int | None) -> ir.Model:
    if isinstance(module, Decoder):
        return emit_decoder(module, DTYPES[dtype], context or module.spec.context)
    from openclaw_opt.models.emit_hf import emit_hf

    return emit_hf(module, DTYPES[dtype])


def check(graph: Graph) -> None:
    """onnx.checker with shape inference and type checks; VerificationError where it refuses."""
    try:
        onnx.checker.check_model(str(graph.onnx), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationError(f"the exported graph is not valid ONNX: {error}", where=str(graph.onnx)) from error


def _context(facts: ModelFacts, wanted: int | None) -> int | None:
    stated = facts.spec.context
    return stated if wanted is None or stated is None else min(wanted, stated)


def graph_facts(facts: ModelFacts, dtype: FloatType, context: int | None) -> GraphFacts:
    """What graph.json states of the portable graph of a model."""
    quantized = tuple(
        LayerFormat(name=name, format=quant.format, block=quant.block) for name, quant in facts.quant.items()
    )
    common = {"task": facts.task, "dialect": "portable", "dtype": dtype, "family": facts.family, "opset": OPSET}
    if isinstance(facts.spec, HfSpec):
        more: dict[str, object] = {"batch_first_shapes": input_shapes(facts.spec)}
    else:
        more = {
            "kv": caches(facts.spec),
            "recompute_after": _recompute_after(facts.spec, context),
            "decoder": facts.spec.model_dump(mode="json"),
        }
    return GraphFacts.model_validate(
        {
            **common,
            **more,
            "vocab": facts.spec.vocab,
            "context": context,
            "hidden": facts.spec.hidden,
            "quantized": quantized,
            "sparse": facts.sparse,
            "quantized_activations": any(quant.input_scale or quant.dynamic for quant in facts.quant.values()),
        }
    )


def _recompute_after(spec: DecoderSpec, context: int | None) -> int | None:
    switches = [rope.original for rope in spec.ropes.values() if rope.type == "longrope"]
    return min(switches) if switches and min(switches) < (context or spec.context) else None


def input_shapes(spec: HfSpec) -> dict[str, list[int | str]]:
    """Input name to shape of an encoder or vision model, in the order the module takes them."""
    if spec.image is not None:
        return {"pixel_values": ["batch", *spec.image]}
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if spec.token_types else [])]
    return {name: ["batch", "sequence"] for name in names}
