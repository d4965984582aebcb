"""The canonical decoder as standard ONNX operators of opset 23, written from the spec without tracing.

Inputs   input_ids [batch, sequence], attention_mask [batch, total], position_ids [batch, sequence], int64;
         past_key_values.{i}.key|value [batch, kv_heads_i, past, head_dim]; total = past + sequence.
Outputs  logits [batch, sequence, vocab] float32, present.{i}.key|value [batch, kv_heads_i, total, head_dim].

With a low-bit cache past and present are int8 codes (of int4 too), and what attention reads of them is Cast · scale.

Rotary tables are initializers `rope.{key}.cos|sin` [context, dim / 2]. A longrope table has 2 * context rows, and the
positions of a row of the batch whose last one is past the original context are moved into its second half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from openclaw_opt.formats import CACHES, CacheFormat
from openclaw_opt.models.decoder import Decoder, Layer, Norm
from openclaw_opt.models.emit import TYPES, Writer, describe
from openclaw_opt.models.emit_linear import emit_linear
from openclaw_opt.models.rope import tables
from openclaw_opt.models.spec import DecoderSpec, RopeSpec

OPSET = 23


def emit_decoder(decoder: Decoder, dtype: torch.dtype, context: int) -> ir.Model:
    """The graph of `decoder`, its weights lazy. `context` bounds the rotary tables, in tokens."""
    spec, writer = decoder.spec, Writer(dtype, OPSET)
    ids, mask, positions, pasts = _inputs(spec, TYPES[dtype])
    x = writer.op("Gather", [writer.weight("embed.weight", decoder.embed.weight), ids], "embed")
    if spec.embed_scale != 1.0:
        x = writer.op("Mul", [x, scalar(writer, "embed.scale", spec.embed_scale)], "embed")
    if decoder.positions is not None:
        table = writer.weight("positions.weight", decoder.positions.weight)
        x = writer.op("Add", [x, writer.op("Gather", [table, positions], "positions")], "positions")
    places = {key: _rope(writer, key, rope, positions, context) for key, rope in spec.ropes.items()}
    masks = _masks(writer, spec, ids, mask)
    presents: list[ir.Value] = []
    for i, layer in enumerate(decoder.layers):
        assert isinstance(layer, Layer)
        emit = _LayerWriter(writer, layer, i)
        x, present = emit.layer(x, places.get(layer.sizes.rope or ""), masks[layer.sizes.window], pasts[i])
        presents += present
    logits = _logits(writer, decoder, x)
    return _model(writer, spec, [ids, mask, positions, *(past for pair in pasts for past in pair)], [logits, *presents])


def scalar(writer: Writer, name: str, value: float) -> ir.Value:
    """A float constant in the graph's type."""
    return writer.weight(name, torch.tensor(value))


def emit_norm(writer: Writer, x: ir.Value, name: str, norm: Norm) -> ir.Value:
    """RMSNormalization or LayerNormalization over the last axis, computed in float32."""
    weight = writer.weight(f"{name}.weight", norm.weight)
    if norm.bias is None:
        return writer.op("RMSNormalization", [x, weight], name, axis=-1, epsilon=norm.eps, stash_type=1)
    bias = writer.weight(f"{name}.bias", norm.bias)
    return writer.op("LayerNormalization", [x, weight, bias], name, axis=-1, epsilon=norm.eps, stash_type=1)


def cache_format(spec: DecoderSpec) -> CacheFormat | None:
    """Row of the cache that the graph holds; None for float, which it is too where the runtime finds the scales."""
    return None if spec.cache is None or spec.cache.dynamic else CACHES[spec.cache.format]


def _inputs(spec: DecoderSpec, dtype: ir.DataType) -> tuple[ir.Value, ir.Value, ir.Value, list[list[ir.Value]]]:
    ids = describe("input_ids", ir.DataType.INT64, ["batch", "sequence"])
    mask = describe("attention_mask", ir.DataType.INT64, ["batch", "total"])
    positions = describe("position_ids", ir.DataType.INT64, ["batch", "sequence"])
    held = dtype if cache_format(spec) is None else ir.DataType.INT8
    pasts = [
        [
            describe(f"past_key_values.{i}.{part}", held, ["batch", sizes.kv_heads, "past", spec.head_dim])
            for part in ("key", "value")
        ]
        for i, sizes in enumerate(spec.layers)
    ]
    return ids, mask, positions, pasts


Place = tuple[ir.Value, ir.Value, ir.Value, int]
"""cos table, sin table, row of each token, rotated elements of a head."""


@dataclass(frozen=True)
class _Table:
    """Makes the cos (0) or sin (1) table when it is written."""

    rope: RopeSpec
    context: int
    part: int
    dtype: torch.dtype

    def __call__(self) -> torch.Tensor:
        return tables(self.rope, self.context)[self.part].to(self.dtype)


def _rope(writer: Writer, key: str, rope: RopeSpec, positions: ir.Value, context: int) -> Place:
    rows, half = context * (2 if rope.type == "longrope" else 1), rope.dim // 2
    made = [
        writer.lazy(f"rope.{key}.{part}", _Table(rope, context, i, writer.dtype), writer.dtype, (rows, half))
        for i, part in enumerate(("cos", "sin"))
    ]
    cos, sin = made
    if rope.type != "longrope":
        return cos, sin, positions, rope.dim
    scope = f"rope.{key}"
    last = writer.op("ReduceMax", [positions, writer.constant("axes.1", [1])], scope, keepdims=1)
    far = writer.op("GreaterOrEqual", [last, writer.constant(f"{scope}.original", rope.original)], scope)
    start = writer.op("Where", [far, writer.constant(f"{scope}.long", context), writer.constant("zero", 0)], scope)
    return cos, sin, writer.op("Add", [positions, start], scope), rope.dim


def _masks(writer: Writer, spec: DecoderSpec, ids: ir.Value, mask: ir.Value) -> dict[int | None, ir.Value]:
    """Bool [batch, 1, sequence, total] for each window; see `models.decoder.visible`."""
    zero, one = writer.constant("zero", 0), writer.constant("one", 1)
    new = writer.op("Squeeze", [writer.op("Shape", [ids], "mask.new", start=1, end=2)], "mask.new")
    total = writer.op("Squeeze", [writer.op("Shape", [mask], "mask.total", start=1, end=2)], "mask.total")
    keys = writer.op("Range", [zero, total, one], "mask.keys")
    past = writer.op("Sub", [total, new], "mask.past")
    queries = writer.op("Range", [past, total, one], "mask.queries")
    own = writer.op("Unsqueeze", [queries, writer.constant("axes.1", [1])], "mask.queries")
    real = writer.op("Cast", [mask], "mask.real", to=ir.DataType.BOOL)
    real = writer.op("Unsqueeze", [real, writer.constant("axes.1_2", [1, 2])], "mask.real")
    seen = writer.op("Or", [real, writer.op("Equal", [keys, own], "mask.self")], "mask.seen")
    causal = writer.op("LessOrEqual", [keys, own], "mask.causal")
    masks: dict[int | None, ir.Value] = {}
    for window in dict.fromkeys(sizes.window for sizes in spec.layers):
        if window is None:
            masks[window] = writer.op("And", [seen, causal], "mask.full")
            continue
        scope = f"mask.window_{window}"
        edge = writer.op("Sub", [own, writer.constant(scope, window)], scope)
        near = writer.op("And", [causal, writer.op("Greater", [keys, edge], scope)], scope)
        masks[window] = writer.op("And", [seen, near], scope)
    return masks


class _LayerWriter:
    """Writes one layer; every name starts with its module path."""

    def __init__(self, writer: Writer, layer: Layer, index: int) -> None:
        self.writer, self.parts, self.spec, self.sizes, self.index = writer, layer, layer.spec, layer.sizes, index

    def name(self, part: str) -> str:
        return f"layers.{self.index}.{part}"

    def linear(self, x: ir.Value, part: str) -> ir.Value:
        return emit_linear(self.writer, x, self.name(part), self.parts.get_submodule(part))

    def norm(self, x: ir.Value, part: str) -> ir.Value:
        module = self.parts.get_submodule(part)
        assert isinstance(module, Norm)
        return emit_norm(self.writer, x, self.name(part), module)

    def layer(
        self, x: ir.Value, place: Place | None, mask: ir.Value, past: list[ir.Value]
    ) -> tuple[ir.Value, list[ir.Value]]:
        attended, presents = self.attention(self.norm(x, "norm_in"), place, mask, past)
        if self.spec.post_norms:
            attended = self.norm(attended, "norm_post_attn")
        x = self.writer.op("Add", [x, attended], self.name("residual_attn"))
        fed = self.mlp(self.norm(x, "norm_mlp"))
        if self.spec.post_norms:
            fed = self.norm(fed, "norm_post_mlp")
        return self.writer.op("Add", [x, fed], self.name("residual_mlp")), presents

    def attention(
        self, x: ir.Value, place: Place | None, mask: ir.Value, past: list[ir.Value]
    ) -> tuple[ir.Value, list[ir.Value]]:
        q, k, v = self.heads(self.linear(x, "qkv"))
        if self.spec.qk_norm:
            q, k = self.norm(q, "q_norm"), self.norm(k, "k_norm")
        if place is not None:
            q, k = self.rotary(q, place, "q"), self.rotary(k, place, "k")
        presents = [
            self.writer.op(
                "Concat",
                [old, self.codes(new, part)],
                self.name(f"cache.{part}"),
                outputs=[f"present.{self.index}.{part}"],
                axis=2,
            )
            for old, new, part in zip(past, (k, v), ("key", "value"), strict=True)
        ]
        y = self.writer.op(
            "Attention",
            [q, *(self.values(held, part) for held, part in zip(presents, ("key", "value"), strict=True)), mask],
            self.name("attention"),
            scale=self.spec.attention_scale,
            softcap=self.spec.attention_softcap,
        )
        y = self.writer.op("Transpose", [y], self.name("attention"), perm=[0, 2, 1, 3])
        width = self.sizes.q_heads * self.spec.head_dim
        y = self.writer.op("Reshape", [y, self.shape(0, 0, width)], self.name("attention"))
        return self.linear(y, "o"), presents

    def codes(self, x: ir.Value, part: str) -> ir.Value:
        """New keys or values as the cache holds them: int8 codes (of int4 too), or `x` where it is float."""
        row = cache_format(self.spec)
        if row is None:
            return x
        scope = self.name(f"cache.{part}")
        x = self.writer.op("Div", [x, self.scale(part)], scope)
        if row.bits < 8:
            ends = [
                scalar(self.writer, f"cache.{word}", float(code))
                for word, code in (("lowest", row.lowest), ("top", row.top))
            ]
            x = self.writer.op("Clip", [x, *ends], scope)
        zero = self.writer.constant("cache.zero", np.array(0, np.int8))
        return self.writer.op("QuantizeLinear", [x, scalar(self.writer, "cache.step", 1.0), zero], scope)

    def values(self, held: ir.Value, part: str) -> ir.Value:
        """What attention reads of the whole cache."""
        if cache_format(self.spec) is None:
            return held
        scope = self.name(f"cache.{part}")
        wide = self.writer.op("Cast", [held], scope, to=TYPES[self.writer.dtype])
        return self.writer.op("Mul", [wide, self.scale(part)], scope)

    def scale(self, part: str) -> ir.Value:
        """Float [kv_heads, 1, head_dim]."""
        name = f"{part[0]}_scale"
        return self.writer.weight(self.name(name), self.parts.get_buffer(name))

    def heads(self, qkv: ir.Value) -> list[ir.Value]:
        """[batch, sequence, width] split into q, k, v of [batch, heads, sequence, head_dim]."""
        counts, head_dim = (self.sizes.q_heads, self.sizes.kv_heads, self.sizes.kv_heads), self.spec.head_dim
        widths = self.shape(*(heads * head_dim for heads in counts))
        parts = self.writer.op("Split", [qkv, widths], self.name("split_qkv"), outputs=3, axis=-1)
        made = []
        for part, heads, letter in zip(parts, counts, "qkv", strict=True):
            shaped = self.writer.op("Reshape", [part, self.shape(0, 0, heads, head_dim)], self.name(letter))
            made.append(self.writer.op("Transpose", [shaped], self.name(letter), perm=[0, 2, 1, 3]))
        return made

    def rotary(self, x: ir.Value, place: Place, letter: str) -> ir.Value:
        cos, sin, rows, dim = place
        partial = dim if dim != self.spec.head_dim else None
        return self.writer.op(
            "RotaryEmbedding", [x, cos, sin, rows], self.name(letter), interleaved=0, rotary_embedding_dim=partial
        )

    def mlp(self, x: ir.Value) -> ir.Value:
        if not self.spec.gated:
            return self.linear(self.activate(self.linear(x, "up")), "down")
        both = self.linear(x, "gate_up")
        widths = self.shape(self.sizes.ffn, self.sizes.ffn)
        gate, up = self.writer.op("Split", [both, widths], self.name("split_gate_up"), outputs=2, axis=-1)
        return self.linear(self.writer.op("Mul", [self.activate(gate), up], self.name("gated")), "down")

    def activate(self, x: ir.Value) -> ir.Value:
        scope, kind = self.name("activation"), self.spec.activation
        if kind == "silu":
            return self.writer.op("Mul", [x, self.writer.op("Sigmoid", [x], scope)], scope)
        if kind == "relu":
            return self.writer.op("Relu", [x], scope)
        return self.writer.op("Gelu", [x], scope, approximate="tanh" if kind == "gelu_tanh" else "none")

    def shape(self, *sizes: int) -> ir.Value:
        return self.writer.constant(f"sizes.{'_'.join(map(str, sizes))}", np.array(sizes, np.int64))


def _logits(writer: Writer, decoder: Decoder, x: ir.Value) -> ir.Value:
    """The head. A tied one reads the embedding through a Transpose, so that the file holds the matrix once."""
    x = emit_norm(writer, x, "norm_out", decoder.norm_out)
    if getattr(decoder.head, "weight", None) is decoder.embed.weight:
        turned = writer.op("Transpose", [writer.initializers["embed.weight"]], "head", perm=[1, 0])
        x = writer.op("MatMul", [x, turned], "head")
    else:
        x = emit_linear(writer, x, "head", decoder.head)
    cap = decoder.spec.logit_softcap
    if cap is None:
        return writer.op("Cast", [x], "logits", outputs=["logits"], to=ir.DataType.FLOAT)
    limit = writer.constant("logits.softcap", np.array(cap, np.float32))
    x = writer.op("Cast", [x], "logits", to=ir.DataType.FLOAT)
    x = writer.op("Tanh", [writer.op("Div", [x, limit], "logits")], "logits")
    return writer.op("Mul", [x, limit], "logits", outputs=["logits"])


def _model(writer: Writer, spec: DecoderSpec, inputs: list[ir.Value], outputs: list[ir.Value]) -> ir.Model:
    outputs[0].type, outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", "sequence", spec.vocab])
    for present, past in zip(outputs[1:], inputs[3:], strict=True):
        assert past.shape is not None
        present.type, present.shape = past.type, ir.Shape([past.shape[0], past.shape[1], "total", past.shape[3]])
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=writer.nodes,
        initializers=list(writer.initializers.values()),
        opset_imports={"": OPSET},
        name="decoder",
    )
    return ir.Model(graph, ir_version=11, producer_name="openclaw-opt")
