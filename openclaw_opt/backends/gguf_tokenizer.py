"""The checkpoint's tokenizer inside a GGUF file, where llama.cpp has the same one; proven on text, or left out with the reason.

A byte-level BPE is its list of tokens, its merges and one of llama.cpp's named ways of splitting text before merging. The name
is found by what the tokenizer.json says, and the result must give the same ids as the `tokenizers` library on PROBES.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NORMAL, CONTROL, UNUSED = 1, 3, 5
"""Token types of GGUF."""
SPLITS = {
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+": "llama-bpe",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+": "qwen2",
}
"""The expression of a `Split` pre-tokenizer → llama.cpp's name for it. ByteLevel's own expression is `gpt-2`."""
PROBES = (
    "Hello, world!  Two spaces,\ttab\nand lines\n\n\n",
    "def f(x: int = 42) -> str:\n    return f'{x:>10.3f}'  # 1234567 isn't we'll I'D",
    "naïve café — “quotes” 你好，世界 🙂🚀 Ελλάδα 0x1F 3.14159",
)


@dataclass(frozen=True)
class Vocabulary:
    """What the file states; `why` says why there is no tokenizer in it, where there is none."""

    facts: dict[str, Any]
    why: str = ""


def vocabulary(assets: Path, size: int, config: Mapping[str, Any]) -> Vocabulary:
    """The tokenizer of `assets`, for a model of `size` token ids. `config` is config.json over generation_config.json."""
    file = assets / "tokenizer.json"
    if not file.is_file():
        return Vocabulary({"tokenizer.ggml.model": "no_vocab"}, "the checkpoint has no tokenizer.json")
    content = json.loads(file.read_text(encoding="utf-8"))
    split, why = _split(content)
    if why:
        return Vocabulary({"tokenizer.ggml.model": "no_vocab"}, why)
    tokens, types = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for token, i in content["model"]["vocab"].items():
        tokens[i], types[i] = token, NORMAL
    for added in content.get("added_tokens", []):
        tokens[added["id"]], types[added["id"]] = added["content"], CONTROL if added["special"] else 4
    merges = [one if isinstance(one, str) else " ".join(one) for one in content["model"]["merges"]]
    facts: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
    }
    for ours, theirs in (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")):
        given = config.get(ours)
        first = given[0] if isinstance(given, list) and given else given
        if isinstance(first, int):
            facts[f"tokenizer.ggml.{theirs}_token_id"] = first
    template = _chat_template(assets)
    return Vocabulary(facts | ({"tokenizer.chat_template": template} if template else {}))


def _split(content: Mapping[str, Any]) -> tuple[str, str]:
    """llama.cpp's name of the splitting, or why it has none."""
    model = content["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback") or content.get("normalizer"):
        kind = "a BPE with byte fallback or a normalizer" if model.get("type") == "BPE" else f"a {model.get('type')}"
        return "", f"the tokenizer is {kind}, and only plain byte-level BPE is written"
    before = content.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    level = next((step for step in steps if step.get("type") == "ByteLevel"), None)
    if level is None or level.get("add_prefix_space"):
        return "", "the tokenizer does not split by ByteLevel without a prefix space"
    patterns = [step["pattern"].get("Regex", "") for step in steps if step.get("type") == "Split"]
    if not patterns and level.get("use_regex", True):
        return "gpt-2", ""
    known = [SPLITS[pattern] for pattern in patterns if pattern in SPLITS]
    if len(known) == len(steps) - 1 == 1:
        return known[0], ""
    return "", "llama.cpp has no name for the way the tokenizer splits text"


def _chat_template(assets: Path) -> str:
    file = assets / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config = assets / "tokenizer_config.json"
    stated = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    return stated if isinstance(stated, str) else ""
