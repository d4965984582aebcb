"""Tiny random checkpoints of every family, as Hugging Face writes them. Shared by all tests.

Weights are large (std 0.2), so that attention, windows and soft-caps change the output and a mistake shows.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

from openclaw_opt.artifacts import Checkpoint

SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FACTORS = [1.0 + 0.1 * i for i in range(8)]

CONFIGS: dict[str, Any] = {
    "llama": lambda: hf.LlamaConfig(**SIZES),
    "llama3": lambda: hf.LlamaConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "llama-yarn": lambda: hf.LlamaConfig(
        **SIZES,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "llama-linear": lambda: hf.LlamaConfig(
        **SIZES, tie_word_embeddings=True, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    ),
    "qwen2": lambda: hf.Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "qwen3": lambda: hf.Qwen3Config(**{**SIZES, "head_dim": 32}),
    "mistral": lambda: hf.MistralConfig(**SIZES, sliding_window=8),
    "gemma2": lambda: hf.Gemma2Config(**SIZES, sliding_window=8, query_pre_attn_scalar=32, attn_logit_softcapping=3.0),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **{**SIZES, "num_hidden_layers": 4}, sliding_window=8, sliding_window_pattern=2, query_pre_attn_scalar=16
    ),
    "phi3": lambda: hf.Phi3Config(
        **{**SIZES, "max_position_embeddings": 64},
        original_max_position_embeddings=16,
        sliding_window=None,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": FACTORS,
            "long_factor": [4 * factor for factor in FACTORS],
        },
    ),
    "phi3-partial": lambda: hf.Phi3Config(
        **SIZES, sliding_window=8, rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}
    ),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=256, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "bert": lambda: hf.BertConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
    "vit": lambda: hf.ViTConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=4,
        num_labels=10,
    ),
    "resnet": lambda: hf.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=10, num_channels=1
    ),
}
DECODERS = tuple(name for name in CONFIGS if name not in ("bert", "vit", "resnet"))
CLASSES = {"bert": hf.BertModel, "vit": hf.ViTForImageClassification, "resnet": hf.ResNetForImageClassification}


def write_tokenizer(folder: Path, vocab: int) -> None:
    """A tokenizer.json whose words are `<0>` … `<n>`."""
    words = {f"<{i}>": i for i in range(vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<0>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def write_checkpoint(
    folder: Path, family: str = "llama", *, std: float = 0.2, seed: int = 0, shard: str = "5GB", **changes: Any
) -> Path:
    """A random checkpoint of `family` in `folder`, its files at most `shard`; `changes` are set on its config. Returns `folder`."""
    torch.manual_seed(seed)
    config = CONFIGS[family]()
    for key, value in changes.items():
        setattr(config, key, value)
    build = CLASSES.get(family) or hf.AutoModelForCausalLM.from_config
    model = build(config).eval()
    for name, value in model.named_parameters():
        spread = 0.1 if "norm" in name or "ln_" in name or "bias" in name else std
        value.data.add_(torch.randn_like(value) * spread)
    model.save_pretrained(folder, max_shard_size=shard)
    if family not in ("vit", "resnet"):
        write_tokenizer(folder, config.vocab_size)
    return folder


def open_tiny(folder: Path) -> Checkpoint:
    """The folder as a Checkpoint."""
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))}
    return Checkpoint(folder, json.loads((folder / "config.json").read_text()), files)
