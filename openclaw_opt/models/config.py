"""config.json of a decoder → DecoderSpec: the keys that Hugging Face has used for the same fact, old and new."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from openclaw_opt.errors import RecipeError, nearest
from openclaw_opt.models.spec import Activation, DecoderSpec, LayerSpec, RopeSpec

Config = Mapping[str, Any]

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}


@dataclass(frozen=True)
class DecoderFamily:
    """A row a decoder family: what its config.json leaves out and where its tensors are.

    `tensors` maps a module of the canonical decoder to the checkpoint's module, `{i}` being the layer; a tuple is
    concatenated along the output axis, in that order.
    """

    name: str
    architectures: tuple[str, ...]
    tensors: Mapping[str, str | tuple[str, ...]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    """Our name of a config key → the family's, where they differ."""
    slides: Callable[[int, Config], bool] = lambda i, config: True
    """Whether layer i uses `sliding_window`, where config.json has no `layer_types`."""
    prefix: str = "model."
    """Checkpoints of the bare model leave it out."""
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    """Added to every norm weight at load."""
    gated: bool = True
    qk_norm: bool = False
    post_norms: bool = False
    learned_positions: bool = False
    transposed: bool = False
    """Linear weights are stored [in, out]."""
    biases: Callable[[Config], tuple[bool, bool, bool]] = lambda config: (False, False, False)
    """Whether qkv, o and the MLP have a bias."""
    embed_scaled: bool = False
    refused: Mapping[str, Any] = field(default_factory=dict)
    """Config key → the only value that is supported."""

    def read(self, config: Config) -> DecoderSpec:
        return read_decoder(self, _Keys(self, config))


class _Keys(Mapping[str, Any]):
    """config.json under our names, with the family's defaults."""

    def __init__(self, family: DecoderFamily, config: Config) -> None:
        self._names, self._defaults, self._config = family.keys, family.defaults, config

    def __getitem__(self, key: str) -> Any:
        name = self._names.get(key, key)
        if name in self._config:
            return self._config[name]
        return self._defaults[key]

    def __iter__(self) -> Any:
        return iter({*self._config, *self._defaults})

    def __len__(self) -> int:
        return len({*self._config, *self._defaults})

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise RecipeError(
                f"config.json lacks {self._names.get(key, key)!r}", where="config.json", fix="complete the checkpoint"
            )
        return value


def read_decoder(family: DecoderFamily, config: _Keys) -> DecoderSpec:
    """The spec that `config` states for a checkpoint of `family`."""
    _refuse(family, config)
    hidden, heads = int(config.need("hidden_size")), int(config.need("num_attention_heads"))
    head_dim = int(config.get("head_dim") or hidden // heads)
    ropes, rope_of = ({}, lambda i: None) if family.learned_positions else read_ropes(config, head_dim)
    qkv_bias, o_bias, mlp_bias = family.biases(config)
    scalar = config.get("query_pre_attn_scalar")
    return DecoderSpec(
        family=family.name,
        vocab=config.need("vocab_size"),
        hidden=hidden,
        head_dim=head_dim,
        layers=_layers(family, config, rope_of),
        context=config.need("max_position_embeddings"),
        norm=family.norm,
        norm_eps=config.need("rms_norm_eps"),
        activation=_activation(config),
        gated=family.gated,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=family.qk_norm,
        post_norms=family.post_norms,
        tied=bool(config.get("tie_word_embeddings", False)),
        learned_positions=family.learned_positions,
        embed_scale=math.sqrt(hidden) if family.embed_scaled else 1.0,
        attention_scale=float(scalar if scalar is not None else head_dim) ** -0.5,
        attention_softcap=config.get("attn_logit_softcapping"),
        logit_softcap=config.get("final_logit_softcapping"),
        ropes=ropes,
    )


def _refuse(family: DecoderFamily, config: _Keys) -> None:
    if config.get("quantization_config"):
        raise RecipeError(
            f"the checkpoint is already quantized ({config['quantization_config'].get('quant_method', '?')})",
            where="config.json",
            fix="start from the checkpoint in bfloat16, float16 or float32",
        )
    for key, only in family.refused.items():
        given = config.get(key, only)
        if given != only and not (given is None and not only):
            raise RecipeError(
                f"{family.name}: {key} = {config[key]!r} is not supported", where="config.json", fix=f"{key}: {only!r}"
            )


def _activation(config: _Keys) -> Activation:
    word = config.need("hidden_act")
    if word not in ACTIVATIONS:
        raise RecipeError(
            f"activation {word!r} is not supported", where="config.json", fix=nearest(str(word), ACTIVATIONS)
        )
    return ACTIVATIONS[word]


def _layers(family: DecoderFamily, config: _Keys, rope_of: Callable[[str], str | None]) -> tuple[LayerSpec, ...]:
    heads = int(config.need("num_attention_heads"))
    kv_heads = int(config.get("num_key_value_heads") or heads)
    if heads % kv_heads:
        raise RecipeError(
            f"num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv_heads}", where="config.json"
        )
    ffn = int(config.get("intermediate_size") or 4 * config.need("hidden_size"))
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    kinds = config.get("layer_types") or [
        "sliding_attention" if window and family.slides(i, config) else "full_attention"
        for i in range(int(config.need("num_hidden_layers")))
    ]
    for kind in kinds:
        if kind not in ("sliding_attention", "full_attention"):
            raise RecipeError(
                f"layer type {kind!r} is not supported",
                where="config.json",
                fix=nearest(str(kind), ("sliding_attention", "full_attention")),
            )
    return tuple(
        LayerSpec(
            q_heads=heads,
            kv_heads=kv_heads,
            ffn=ffn,
            window=window if kind == "sliding_attention" else None,
            rope=rope_of(kind),
        )
        for kind in kinds
    )


def read_ropes(config: _Keys, head_dim: int) -> tuple[dict[str, RopeSpec], Callable[[str], str | None]]:
    """The rope tables by key, and the key that a layer type uses.

    Reads today's `rope_parameters` (flat, or nested by layer type) and the older `rope_theta`, `rope_scaling`,
    `rope_local_base_freq`.
    """
    given = config.get("rope_parameters") or {}
    nested = {kind: given[kind] for kind in ("full_attention", "sliding_attention") if given.get(kind)}
    local = config.get("rope_local_base_freq")
    if not nested and local is None:
        return {
            "default": _rope(config, {**given, **(config.get("rope_scaling") or {})}, head_dim)
        }, lambda kind: "default"
    full = nested.get("full_attention") or (config.get("rope_scaling") or {})
    sliding = nested.get("sliding_attention") or {}
    ropes = {
        "global": _rope(config, full, head_dim),
        "local": _rope(config, {"rope_theta": local, **sliding}, head_dim),
    }
    return ropes, lambda kind: "global" if kind == "full_attention" else "local"


def _rope(config: _Keys, given: Config, head_dim: int) -> RopeSpec:
    word = str(given.get("rope_type") or given.get("type") or "default")
    word = {"su": "longrope"}.get(word, word)
    readers: dict[str, Callable[[Config, Config], dict[str, Any]]] = {
        "default": lambda given, config: {},
        "linear": lambda given, config: {"factor": _stated(given, "factor", word)},
        "llama3": _llama3,
        "yarn": _yarn,
        "longrope": _longrope,
    }
    if word not in readers:
        raise RecipeError(f"rope type {word!r} is not supported", where="config.json", fix=nearest(word, readers))
    partial = given.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    rope = RopeSpec.model_validate(
        {
            "type": word,
            "theta": given.get("rope_theta") or config.need("rope_theta"),
            "dim": int(head_dim * (1.0 if partial is None else partial)),
            **readers[word](given, config),
        }
    )
    if word == "longrope" and not len(rope.short) == len(rope.long) == rope.dim // 2:
        raise RecipeError(
            f"longrope needs {rope.dim // 2} short and long factors, got {len(rope.short)} and {len(rope.long)}",
            where="config.json",
        )
    return rope


def _stated(given: Config, key: str, word: str) -> Any:
    if given.get(key) is None:
        raise RecipeError(f"rope type {word!r} lacks {key!r}", where="config.json", fix="complete the checkpoint")
    return given[key]


def _original(given: Config, config: Config) -> int:
    outside = config.get("original_max_position_embeddings")
    return int(outside or given.get("original_max_position_embeddings") or config["max_position_embeddings"])


def _llama3(given: Config, config: Config) -> dict[str, Any]:
    return {
        "factor": _stated(given, "factor", "llama3"),
        "low_freq": _stated(given, "low_freq_factor", "llama3"),
        "high_freq": _stated(given, "high_freq_factor", "llama3"),
        "original": _original(given, config),
    }


def _yarn(given: Config, config: Config) -> dict[str, Any]:
    original = _original(given, config)
    factor = float(given.get("factor") or config["max_position_embeddings"] / original)

    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    amplitude = given.get("attention_factor")
    if amplitude is None:
        both = given.get("mscale") and given.get("mscale_all_dim")
        amplitude = magnitude(given["mscale"]) / magnitude(given["mscale_all_dim"]) if both else magnitude(1.0)
    return {
        "factor": factor,
        "amplitude": amplitude,
        "original": original,
        "beta_fast": given.get("beta_fast") or 32.0,
        "beta_slow": given.get("beta_slow") or 1.0,
        "truncate": given.get("truncate", True),
    }


def _longrope(given: Config, config: Config) -> dict[str, Any]:
    original = _original(given, config)
    factor = float(given.get("factor") or config["max_position_embeddings"] / original)
    amplitude = given.get("attention_factor")
    if amplitude is None:
        amplitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return {
        "factor": factor,
        "amplitude": amplitude,
        "original": original,
        "short": tuple(_stated(given, "short_factor", "longrope")),
        "long": tuple(_stated(given, "long_factor", "longrope")),
    }
