"""genai_config.json: what makes a decoder's folder one that onnxruntime-genai runs as it is.

`past_present_share_buffer` is true: GroupQueryAttention writes its cache in place. Shapes of the caches are read from the
graph layer by layer, so layers may differ; `num_key_value_heads` here is the first layer's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from openclaw_opt.artifacts import GraphFacts
from openclaw_opt.errors import RecipeError

FILE = "genai_config.json"
MODEL_TYPE = "decoder"
"""onnxruntime-genai's generic type: the graph does everything that is special to a family."""
RECOMPUTES = {4096: "phi3"}
"""`GraphFacts.recompute_after` → the type for which onnxruntime-genai makes the cache again there; it knows no other length."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What og.Tokenizer reads beside the configuration."""


def genai_config(
    facts: GraphFacts,
    inputs: Collection[str],
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    *,
    device: str = "cpu",
) -> dict[str, Any]:
    """The file's content.

    Args:
        facts: of a decoder graph in dialect `onnxruntime`.
        inputs: names of the graph's inputs.
        config: the checkpoint's config.json.
        generation: its generation_config.json; empty if it has none.
        device: `cpu` or `cuda`.

    Raises:
        RecipeError: the checkpoint names no end-of-text token, so that generation could not stop.
    """
    stated = {**config, **{key: value for key, value in generation.items() if value is not None}}
    end = stated.get("eos_token_id")
    if end is None:
        raise RecipeError(
            "the checkpoint has no `eos_token_id`", where="config.json", fix="add it to generation_config.json"
        )
    first = end[0] if isinstance(end, list) else end
    return {
        "model": {
            "type": RECOMPUTES.get(facts.recompute_after or 0, MODEL_TYPE),
            "vocab_size": facts.vocab,
            "context_length": facts.context,
            "bos_token_id": _or(stated.get("bos_token_id"), first),
            "eos_token_id": end,
            "pad_token_id": _or(stated.get("pad_token_id"), first),
            "decoder": _decoder(facts, inputs, device),
        },
        "search": {
            "do_sample": False,
            "max_length": facts.context,
            "num_beams": 1,
            "past_present_share_buffer": True,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    }


def genai_notes(facts: GraphFacts) -> tuple[str, ...]:
    """What onnxruntime-genai does not do for this folder; empty where it does everything."""
    if facts.recompute_after is None or facts.recompute_after in RECOMPUTES:
        return ()
    known = " or ".join(map(str, RECOMPUTES))
    return (
        f"onnxruntime-genai makes a longrope cache again at {known} tokens only, not at {facts.recompute_after}: what it "
        "generates beyond is not the model's",
    )


def _decoder(facts: GraphFacts, inputs: Collection[str], device: str) -> dict[str, Any]:
    names = {name: name for name in ("input_ids", "attention_mask", "position_ids") if name in inputs}
    first = facts.kv[0]
    provider = [{"cuda": {"enable_cuda_graph": "0"}}] if device == "cuda" else []
    return {
        "filename": "model.onnx",
        "head_size": first.head_dim,
        "hidden_size": facts.hidden,
        "num_attention_heads": first.q_heads,
        "num_hidden_layers": len(facts.kv),
        "num_key_value_heads": first.kv_heads,
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": provider},
        "inputs": {
            **names,
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }


def _or(value: Any, instead: Any) -> Any:
    return instead if value is None else value
