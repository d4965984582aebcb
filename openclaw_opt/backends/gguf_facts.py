"""What a GGUF file states beside its weights: sizes, rotation, tokenizer; and which decoders llama.cpp can run exactly.

llama.cpp brings each architecture as code and reads sizes from the file. `refused` compares a DecoderSpec with what that code
does, so that a trait it would drop (a sliding window, an input factor, a bias) is an error by name and never another model.
Read without gguf and llama.cpp, so that `check` can use it.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's `src/models`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from openclaw_opt.models.spec import DecoderSpec, RopeSpec


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's, and what of a decoder it can do.

    Attributes:
        name: llama.cpp's word.
        interleaved: rotates neighbours (2i, 2i + 1) where the checkpoint rotates (i, i + dim / 2): rows of q and k are reordered.
        merged_ffn: gate and up are one matrix.
        square: the heads together are as wide as the model.
        ropes: rotation types that it computes as we do.
        windows: it slides.
        gemma: norms after attention and MLP, scaled embedding, tanh GELU.
        free_head: the head may be another matrix than the embedding.
    """

    name: str
    interleaved: bool = False
    merged_ffn: bool = False
    square: bool = False
    ropes: tuple[str, ...] = ("default", "linear")
    windows: bool = False
    gemma: bool = False
    free_head: bool = True
    biases: tuple[str, ...] = ()
    softcaps: tuple[str, ...] = ()
    partial: bool = False


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        "llama", interleaved=True, ropes=("default", "linear", "llama3", "yarn"), biases=("qkv", "o", "mlp")
    ),
    "mistral": Architecture("llama", interleaved=True, ropes=("default", "linear", "llama3", "yarn")),
    "qwen2": Architecture("qwen2", square=True, biases=("qkv",)),
    "qwen3": Architecture("qwen3", biases=("qkv",)),
    "phi3": Architecture("phi3", merged_ffn=True, square=True, ropes=("default", "linear"), partial=True),
    "gemma2": Architecture(
        "gemma2", windows=True, gemma=True, free_head=False, softcaps=("attention", "logit"), ropes=("default",)
    ),
    "gemma3": Architecture("gemma3", windows=True, gemma=True, softcaps=("logit",)),
}
"""Our family → llama.cpp's architecture. Mistral is written as its Llama, which has the same code."""
GEMMA_27B = {"gemma2": 46, "gemma3": 62}
"""Layers by which llama.cpp knows the 27B models, whose attention it scales otherwise."""


def refused(spec: DecoderSpec, context: int | None = None) -> Iterator[str]:
    """Why llama.cpp would not compute this decoder as it is; nothing where it does.

    Args:
        context: longest sequence the engine is for, where it is less than the checkpoint's: a window beyond it does nothing.
    """
    if spec.family not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        yield f"the GGUF writer knows {known}, not {spec.family}"
        return
    arch, limit = ARCHITECTURES[spec.family], context or spec.context
    if len({(layer.q_heads, layer.kv_heads, layer.ffn) for layer in spec.layers}) > 1:
        yield "llama.cpp wants all layers of one size; pruning made them differ"
    if not arch.windows and any(layer.window is not None and layer.window < limit for layer in spec.layers):
        window = next(layer.window for layer in spec.layers if layer.window is not None)
        yield f"llama.cpp's {arch.name} has no sliding window; the model's is {window} tokens in a context of {limit}"
    if arch.square and spec.layers[0].q_heads * spec.head_dim != spec.hidden:
        yield f"llama.cpp's {arch.name} wants heads as wide as the model, {spec.hidden}"
    yield from _arithmetic(spec, arch)
    for rope in spec.ropes.values():
        yield from _rotation(rope, spec, arch)


def _arithmetic(spec: DecoderSpec, arch: Architecture) -> Iterator[str]:
    biases = {"qkv": spec.qkv_bias, "o": spec.o_bias, "mlp": spec.mlp_bias}
    for part in (part for part, there in biases.items() if there and part not in arch.biases):
        yield f"llama.cpp's {arch.name} has no bias on {part}"
    caps = {"attention": spec.attention_softcap, "logit": spec.logit_softcap}
    for part in (part for part, cap in caps.items() if cap is not None and part not in arch.softcaps):
        yield f"llama.cpp's {arch.name} has no soft-cap of {part}s"
    wanted = "gelu_tanh" if arch.gemma else "silu"
    if spec.activation != wanted:
        yield f"llama.cpp's {arch.name} has the activation {wanted}, not {spec.activation}"
    scale = spec.head_dim**-0.5
    if GEMMA_27B.get(spec.family) == len(spec.layers):
        scale = (spec.hidden / spec.layers[0].q_heads) ** -0.5
    if abs(spec.attention_scale / scale - 1) > 1e-6:
        yield f"llama.cpp's {arch.name} scales attention by {scale:.4g}, the model by {spec.attention_scale:.4g}"


def _rotation(rope: RopeSpec, spec: DecoderSpec, arch: Architecture) -> Iterator[str]:
    if rope.type not in arch.ropes:
        yield f"llama.cpp's {arch.name} does not rotate as {rope.type} does here"
    if rope.dim != spec.head_dim and not arch.partial:
        yield f"llama.cpp's {arch.name} rotates whole heads, the model {rope.dim} of {spec.head_dim} elements"


def model_facts(spec: DecoderSpec, context: int) -> dict[str, Any]:
    """Keys of the file without the architecture's prefix; ints, floats, strings and lists of booleans."""
    layer, eps = spec.layers[0], spec.norm_eps
    rope = spec.ropes.get("global") or next(iter(spec.ropes.values()))
    facts: dict[str, Any] = {
        "context_length": context,
        "embedding_length": spec.hidden,
        "block_count": len(spec.layers),
        "feed_forward_length": layer.ffn,
        "attention.head_count": layer.q_heads,
        "attention.head_count_kv": layer.kv_heads,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "attention.layer_norm_rms_epsilon": eps,
        "vocab_size": spec.vocab,
        "rope.dimension_count": rope.dim,
        "rope.freq_base": float(rope.theta),
    }
    if rope.type == "linear":
        facts |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope.factor)}
    if rope.amplitude != 1.0:
        facts["rope.scaling.attn_factor"] = float(rope.amplitude)
    windows = [one.window for one in spec.layers]
    if ARCHITECTURES[spec.family].windows and any(windows):
        facts["attention.sliding_window"] = next(window for window in windows if window)
        facts["attention.sliding_window_pattern"] = [window is not None for window in windows]
        facts["rope.freq_base_swa"] = float(spec.ropes.get("local", rope).theta)
    if spec.attention_softcap is not None:
        facts["attn_logit_softcapping"] = float(spec.attention_softcap)
    if spec.logit_softcap is not None:
        facts["final_logit_softcapping"] = float(spec.logit_softcap)
    return facts
