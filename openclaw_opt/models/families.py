"""The families: a row each. To add one, add its row here and its tiny checkpoint to the tests."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openclaw_opt.artifacts import Task
from openclaw_opt.errors import RecipeError, nearest
from openclaw_opt.models.config import DecoderFamily
from openclaw_opt.models.spec import DecoderSpec, HfSpec, LayerSpec

TYPO = 0.93
"""Names of architectures that are at least this alike are taken for one mistyped."""

LLAMA_TENSORS: dict[str, str | tuple[str, ...]] = {
    "embed": "embed_tokens",
    "layers.{i}.norm_in": "layers.{i}.input_layernorm",
    "layers.{i}.qkv": (
        "layers.{i}.self_attn.q_proj",
        "layers.{i}.self_attn.k_proj",
        "layers.{i}.self_attn.v_proj",
    ),
    "layers.{i}.q_norm": "layers.{i}.self_attn.q_norm",
    "layers.{i}.k_norm": "layers.{i}.self_attn.k_norm",
    "layers.{i}.o": "layers.{i}.self_attn.o_proj",
    "layers.{i}.norm_mlp": "layers.{i}.post_attention_layernorm",
    "layers.{i}.gate_up": ("layers.{i}.mlp.gate_proj", "layers.{i}.mlp.up_proj"),
    "layers.{i}.down": "layers.{i}.mlp.down_proj",
    "norm_out": "norm",
}

GEMMA_TENSORS: dict[str, str | tuple[str, ...]] = {
    **LLAMA_TENSORS,
    "layers.{i}.norm_post_attn": "layers.{i}.post_attention_layernorm",
    "layers.{i}.norm_mlp": "layers.{i}.pre_feedforward_layernorm",
    "layers.{i}.norm_post_mlp": "layers.{i}.post_feedforward_layernorm",
}

LLAMA_DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "sliding_window": None,
    "tie_word_embeddings": False,
}

GEMMA_DEFAULTS: dict[str, Any] = {
    **LLAMA_DEFAULTS,
    "hidden_act": "gelu_pytorch_tanh",
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}


def _attention_bias(config: Mapping[str, Any]) -> tuple[bool, bool, bool]:
    everywhere = bool(config.get("attention_bias", False))
    return everywhere, everywhere, bool(config.get("mlp_bias", False))


def _after_first_layers(layer: int, config: Mapping[str, Any]) -> bool:
    return layer >= int(config.get("max_window_layers", 28))


DECODERS: tuple[DecoderFamily, ...] = (
    DecoderFamily(
        "llama",
        ("LlamaForCausalLM",),
        LLAMA_TENSORS,
        LLAMA_DEFAULTS,
        slides=lambda i, config: False,
        biases=_attention_bias,
    ),
    DecoderFamily(
        "qwen2",
        ("Qwen2ForCausalLM",),
        LLAMA_TENSORS,
        {**LLAMA_DEFAULTS, "max_position_embeddings": 32768, "use_sliding_window": False, "sliding_window": 4096},
        slides=_after_first_layers,
        biases=lambda config: (True, False, False),
    ),
    DecoderFamily(
        "qwen3",
        ("Qwen3ForCausalLM",),
        LLAMA_TENSORS,
        {
            **LLAMA_DEFAULTS,
            "max_position_embeddings": 32768,
            "head_dim": 128,
            "use_sliding_window": False,
            "sliding_window": 4096,
        },
        slides=_after_first_layers,
        biases=_attention_bias,
        qk_norm=True,
    ),
    DecoderFamily(
        "mistral",
        ("MistralForCausalLM",),
        LLAMA_TENSORS,
        {**LLAMA_DEFAULTS, "max_position_embeddings": 131072, "sliding_window": 4096},
    ),
    DecoderFamily(
        "gemma2",
        ("Gemma2ForCausalLM",),
        GEMMA_TENSORS,
        {
            **GEMMA_DEFAULTS,
            "max_position_embeddings": 8192,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        {"hidden_act": "hidden_activation"},
        slides=lambda i, config: i % 2 == 0,
        norm_offset=1.0,
        post_norms=True,
        embed_scaled=True,
        biases=_attention_bias,
        refused={"use_bidirectional_attention": False},
    ),
    DecoderFamily(
        "gemma3",
        ("Gemma3ForCausalLM",),
        GEMMA_TENSORS,
        {
            **GEMMA_DEFAULTS,
            "max_position_embeddings": 131072,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
        },
        {"hidden_act": "hidden_activation"},
        slides=lambda i, config: (i + 1) % int(config.get("sliding_window_pattern", 6)) != 0,
        norm_offset=1.0,
        qk_norm=True,
        post_norms=True,
        embed_scaled=True,
        biases=_attention_bias,
        refused={"use_bidirectional_attention": False},
    ),
    DecoderFamily(
        "phi3",
        ("Phi3ForCausalLM",),
        {
            **LLAMA_TENSORS,
            "layers.{i}.qkv": "layers.{i}.self_attn.qkv_proj",
            "layers.{i}.gate_up": "layers.{i}.mlp.gate_up_proj",
        },
        {
            **LLAMA_DEFAULTS,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
        },
    ),
    DecoderFamily(
        "gpt2",
        ("GPT2LMHeadModel",),
        {
            "embed": "wte",
            "positions": "wpe",
            "layers.{i}.norm_in": "h.{i}.ln_1",
            "layers.{i}.qkv": "h.{i}.attn.c_attn",
            "layers.{i}.o": "h.{i}.attn.c_proj",
            "layers.{i}.norm_mlp": "h.{i}.ln_2",
            "layers.{i}.up": "h.{i}.mlp.c_fc",
            "layers.{i}.down": "h.{i}.mlp.c_proj",
            "norm_out": "ln_f",
        },
        {"hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
        {
            "hidden_size": "n_embd",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
            "max_position_embeddings": "n_positions",
            "intermediate_size": "n_inner",
            "hidden_act": "activation_function",
            "rms_norm_eps": "layer_norm_epsilon",
        },
        slides=lambda i, config: False,
        prefix="transformer.",
        norm="layer",
        gated=False,
        learned_positions=True,
        transposed=True,
        biases=lambda config: (True, True, True),
        refused={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ),
)


@dataclass(frozen=True)
class HfFamily:
    """A row a family that runs as Hugging Face wrote it."""

    name: str
    task: Task
    architectures: tuple[str, ...]
    module: str
    """The transformers class that is built."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What that class is built with, besides its config."""
    unused: str = "^$"
    """Pattern of the checkpoint's tensors that the task has no use for."""
    token_types: bool = False

    def read(self, config: Mapping[str, Any]) -> HfSpec:
        architecture = _architecture(config)
        if self.task == "encoder":
            return HfSpec(
                family=self.name,
                task=self.task,
                architecture=architecture,
                hidden=config.get("hidden_size", config.get("dim")),
                vocab=config.get("vocab_size"),
                context=config.get("max_position_embeddings"),
                token_types=self.token_types and int(config.get("type_vocab_size", 2)) > 0,
                embedding=True,
                **_layers(config),
            )
        height, width = image_size(config.get("image_size", 224))
        return HfSpec(
            family=self.name,
            task=self.task,
            architecture=architecture,
            hidden=config.get("hidden_size"),
            classes=len(config["id2label"]) if "id2label" in config else int(config.get("num_labels", 2)),
            image=(int(config.get("num_channels", 3)), height, width),
        )


def _layers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of a BERT's layers, with the defaults of its config."""
    hidden, heads = int(config.get("hidden_size", 768)), int(config.get("num_attention_heads", 12))
    one = LayerSpec(q_heads=heads, kv_heads=heads, ffn=int(config.get("intermediate_size", 3072)))
    layers = (one,) * int(config.get("num_hidden_layers", 12))
    return {"layers": layers, "head_dim": hidden // heads, "types": int(config.get("type_vocab_size", 2))}


def image_size(stated: Any) -> tuple[int, int]:
    """Height and width from any of the ways a config states them: 224, [224, 224], {"height": …}, {"shortest_edge": …}."""
    if isinstance(stated, Mapping):
        edge = stated.get("shortest_edge", 224)
        return int(stated.get("height", edge)), int(stated.get("width", edge))
    if isinstance(stated, int):
        return stated, stated
    return int(stated[0]), int(stated[1])


HF_FAMILIES: tuple[HfFamily, ...] = (
    HfFamily(
        "bert",
        "encoder",
        ("BertModel", "BertForMaskedLM"),
        "BertModel",
        options={"add_pooling_layer": False},
        unused=r"(^|\.)pooler\.|^cls\.|(^|\.)position_ids$",
        token_types=True,
    ),
    HfFamily("vit", "vision", ("ViTForImageClassification",), "ViTForImageClassification", unused=r"^vit\.pooler\."),
    HfFamily("resnet", "vision", ("ResNetForImageClassification",), "ResNetForImageClassification"),
)

Family = DecoderFamily | HfFamily


def find_family(config: Mapping[str, Any]) -> Family:
    """The row of config.json's architecture.

    Raises:
        RecipeError: there is none; the nearest known architecture is named.
    """
    architecture = _architecture(config)
    families: tuple[Family, ...] = (*DECODERS, *HF_FAMILIES)
    rows = {word: row for row in families for word in row.architectures}
    if architecture not in rows:
        typo = difflib.get_close_matches(architecture, rows, n=1, cutoff=TYPO)  # all end alike: Mamba… is not Llama…
        hint = f"{nearest(architecture, typo)} " if typo else ""
        fix = f"{hint}supported: {', '.join(sorted(rows))}"
        raise RecipeError(f"architecture {architecture!r} is not supported", where="config.json", fix=fix)
    return rows[architecture]


def spec_from_config(config: Mapping[str, Any]) -> DecoderSpec | HfSpec:
    """The spec of a Hugging Face config.json.

    Raises:
        RecipeError: the architecture, a rope type, an activation or another trait is not supported; it is named.
    """
    return find_family(config).read(config)


def decoder_family(spec: DecoderSpec) -> DecoderFamily:
    """The row that `spec` was read with."""
    return next(row for row in DECODERS if row.name == spec.family)


def _architecture(config: Mapping[str, Any]) -> str:
    words = config.get("architectures") or []
    if not words:
        raise RecipeError("config.json names no architecture", where="config.json", fix='add "architectures": [...]')
    return str(words[0])
