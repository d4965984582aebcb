"""Sizes of a decoder or a BERT-family encoder from its spec alone, without torch: what a plan can be held to before any work."""

from __future__ import annotations

from openclaw_opt.artifacts import KvShape
from openclaw_opt.models.spec import DecoderSpec, HfSpec, LayerSpec, Sized

ENCODER_LAYERS = "model.encoder.layer"
ENCODER_HEADS = ("attention.self.query", "attention.self.key", "attention.self.value")
ENCODER_O, ENCODER_WIDE, ENCODER_DOWN = "attention.output.dense", "intermediate.dense", "output.dense"
"""Where Hugging Face's BERT has its layers, and the linears of one."""


def linears(spec: Sized) -> dict[str, tuple[int, int]]:
    """Every linear layer → outputs and inputs of its weight; a decoder's head last."""
    found: dict[str, tuple[int, int]] = {}
    stack = ENCODER_LAYERS if isinstance(spec, HfSpec) else "layers"
    for i, layer in enumerate(spec.layers):
        found |= {f"{stack}.{i}.{name}": shape for name, shape in _of_layer(spec, layer).items()}
    return found if isinstance(spec, HfSpec) else {**found, "head": (spec.vocab, spec.hidden)}


def _of_layer(spec: Sized, layer: LayerSpec) -> dict[str, tuple[int, int]]:
    if isinstance(spec, HfSpec):
        return _of_encoder(spec, layer)
    heads, wide = layer.q_heads * spec.head_dim, (2 if spec.gated else 1) * layer.ffn
    return {
        "qkv": ((layer.q_heads + 2 * layer.kv_heads) * spec.head_dim, spec.hidden),
        "o": (spec.hidden, heads),
        "gate_up" if spec.gated else "up": (wide, spec.hidden),
        "down": (spec.hidden, layer.ffn),
    }


def _of_encoder(spec: HfSpec, layer: LayerSpec) -> dict[str, tuple[int, int]]:
    hidden, heads = spec.hidden or 0, layer.q_heads * (spec.head_dim or 0)
    rows = {name: (heads, hidden) for name in ENCODER_HEADS}
    return {**rows, ENCODER_O: (hidden, heads), ENCODER_WIDE: (layer.ffn, hidden), ENCODER_DOWN: (hidden, layer.ffn)}


def parameters(spec: Sized) -> int:
    """Elements of all parameters; a tied head counts once."""
    tied = isinstance(spec, DecoderSpec) and spec.tied
    matrices = sum(n * k for name, (n, k) in linears(spec).items() if not (tied and name == "head"))
    return matrices + tables(spec) + vectors(spec)


def tables(spec: Sized) -> int:
    """Elements of what is gathered from: embeddings of tokens, of positions and of token types."""
    if isinstance(spec, HfSpec):
        return ((spec.vocab or 0) + (spec.context or 0) + spec.types) * (spec.hidden or 0)
    return (spec.vocab + (spec.context if spec.learned_positions else 0)) * spec.hidden


def vectors(spec: Sized) -> int:
    """Elements of norms and biases."""
    if isinstance(spec, HfSpec):
        biases = sum(n for n, _ in linears(spec).values())
        return biases + 2 * (spec.hidden or 0) * (1 + 2 * len(spec.layers))
    each = 2 if spec.norm == "layer" else 1
    count = each * spec.hidden
    for layer in spec.layers:
        shapes = _of_layer(spec, layer)
        biased = {
            "qkv": spec.qkv_bias,
            "o": spec.o_bias,
            "gate_up": spec.mlp_bias,
            "up": spec.mlp_bias,
            "down": spec.mlp_bias,
        }
        count += sum(n for name, (n, _) in shapes.items() if biased[name])
        count += each * spec.hidden * (4 if spec.post_norms else 2)
        count += 2 * each * spec.head_dim if spec.qk_norm else 0
    return count


def caches(spec: DecoderSpec) -> tuple[KvShape, ...]:
    """Shape of every layer's cache, in the graph: one whose scales the runtime finds is float there."""
    cache = spec.cache.format if spec.cache is not None and not spec.cache.dynamic else None
    return tuple(
        KvShape(
            q_heads=layer.q_heads, kv_heads=layer.kv_heads, head_dim=spec.head_dim, window=layer.window, cache=cache
        )
        for layer in spec.layers
    )
