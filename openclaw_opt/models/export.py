"""A model folder → the portable ONNX graph, and the proof that it computes what torch does."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import torch

from openclaw_opt.artifacts import FloatType, Graph, GraphFacts, KvShape, LayerFormat, Model
from openclaw_opt.errors import VerificationError
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.emit import save
from openclaw_opt.models.emit_decoder import OPSET, emit_decoder
from openclaw_opt.models.spec import DecoderSpec, ModelFacts, read_facts
from openclaw_opt.models.store import copy_assets, open_model

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def export_graph(model: Model, folder: Path, *, dtype: FloatType, context: int | None = None) -> Graph:
    """Write model.onnx, model.onnx.data, graph.json and assets/ into `folder`.

    Args:
        dtype: of weights that are not quantized, of activations and of the cache; logits are float32.
        context: longest sequence the graph must be right for, in tokens; None for what the checkpoint states.

    Raises:
        VerificationError: onnx.checker refuses the graph.
    """
    facts, module = read_facts(model), open_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    graph = Graph(folder)
    assert isinstance(module, Decoder)
    limit = min(context or module.spec.context, module.spec.context)
    save(emit_decoder(module, DTYPES[dtype], limit), folder)
    check(graph)
    graph.write_facts(_facts(facts, dtype, limit))
    copy_assets(model.assets, graph.assets, facts.task)
    return graph


def check(graph: Graph) -> None:
    """onnx.checker with shape inference and type checks."""
    try:
        onnx.checker.check_model(str(graph.onnx), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationError(f"the exported graph is not valid ONNX: {error}", where=str(graph.onnx)) from error


def _facts(facts: ModelFacts, dtype: FloatType, context: int) -> GraphFacts:
    spec = facts.spec
    assert isinstance(spec, DecoderSpec)
    return GraphFacts(
        task="decoder",
        dialect="portable",
        dtype=dtype,
        family=facts.family,
        opset=OPSET,
        vocab=spec.vocab,
        context=context,
        hidden=spec.hidden,
        kv=tuple(
            KvShape(q_heads=layer.q_heads, kv_heads=layer.kv_heads, head_dim=spec.head_dim, window=layer.window)
            for layer in spec.layers
        ),
        quantized=_quantized(facts),
    )


def _quantized(facts: ModelFacts) -> tuple[LayerFormat, ...]:
    return tuple(LayerFormat(name=name, format=quant.format, block=quant.block) for name, quant in facts.quant.items())


__all__ = ["check", "export_graph", "ir"]
