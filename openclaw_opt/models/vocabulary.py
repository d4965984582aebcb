"""Trimming a vocabulary: which tokens stay, and a tokenizer.json that knows only these. Pure JSON, no torch.

What stays: tokens that occur in a text, every token on the way to one of them (BPE makes a token out of two by a merge), every
special or added token, and the 256 symbols of the bytes, so that any text still encodes. Merges stay whose two parts and whose
result do. Ids are given anew, in the old order.

A text of used tokens encodes as before, token by token: BPE takes, of the merges that apply, the one of lowest rank; every merge
that the old tokenizer took there makes a token that stays, so it is still there, and no other merge has come. That the
symbols are bytes is what makes this right for text outside, too: it becomes more, shorter tokens, and never an unknown one.
Tokenizers without byte symbols are refused: `why_not`.

Source: Abdaoui et al., Load What You Need, https://arxiv.org/abs/2010.05609; BPE as in https://arxiv.org/abs/1508.07909.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

BYTE_LEVEL = "ByteLevel"
Json = dict[str, Any]


@dataclass(frozen=True)
class Trimmed:
    """The smaller tokenizer.json, and the old ids that stay, ascending: token i was token kept[i]."""

    tokenizer: Json
    kept: tuple[int, ...]

    @property
    def new(self) -> dict[int, int]:
        """Old id → new id."""
        return {old: i for i, old in enumerate(self.kept)}


def why_not(tokenizer: Mapping[str, Any]) -> str:
    """Why this tokenizer cannot be trimmed, as the end of a sentence; empty if it can."""
    model = tokenizer["model"]
    if model["type"] != "BPE":
        return f"its model is {model['type']}, not BPE"
    if BYTE_LEVEL not in _types(tokenizer.get("pre_tokenizer")):
        return "its tokens are not made of bytes (no ByteLevel pre-tokenizer), so text outside the vocabulary would be lost"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return "its tokens carry prefixes or suffixes"
    if model.get("dropout"):
        return "it drops merges at random"
    missing = [symbol for symbol in byte_symbols() if symbol not in model["vocab"]]
    return f"{len(missing)} of 256 byte symbols are not in its vocabulary" if missing else ""


def _types(part: Mapping[str, Any] | None) -> Iterator[str]:
    """The type of a pre-tokenizer, and of those in it."""
    if part is not None:
        yield str(part["type"])
        for inner in part.get("pretokenizers", ()):
            yield from _types(inner)


def byte_symbols() -> list[str]:
    """The characters that stand for bytes 0 to 255: themselves where they print, else those from U+0100 on."""
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in prints else chr(next(others)) for byte in range(256)]


def trim(
    tokenizer: Json, counts: Mapping[int, int], stated: Collection[int], rows: int | None = None, multiple: int = 1
) -> Trimmed:
    """Keep the tokens that occur, or as many of the most frequent as `rows` says, and what must stay with them.

    Args:
        tokenizer: tokenizer.json that `why_not` does not refuse.
        counts: id → how often it occurs; ids that do not may be left out.
        stated: ids that a model's configuration names, which stay.
        rows: how many tokens are to be left; None for all that occur. More stay where more must.
        multiple: the number is rounded up to one, and filled with the next tokens by frequency, then by id.
    """
    words: dict[str, int] = tokenizer["model"]["vocab"]
    merges = [tuple(one) if isinstance(one, list) else tuple(one.split(" ")) for one in tokenizer["model"]["merges"]]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    by_id = {i: word for word, i in words.items()}
    kept = {int(token["id"]) for token in tokenizer.get("added_tokens", ())} | {words[byte] for byte in byte_symbols()}

    def with_way(i: int) -> set[int]:
        return {i, *_way(by_id[i], ranks, words)} - kept if i in by_id and i not in kept else set()

    ranked = sorted(by_id, key=lambda i: (-counts.get(i, 0), i))
    for i in [*stated, *(i for i in ranked if rows is None and counts.get(i, 0) > 0)]:
        kept |= with_way(i)
    target = -(-(len(kept) if rows is None else rows) // multiple) * multiple
    for i in ranked:
        more = with_way(i)
        if len(kept) + len(more) <= target:
            kept |= more
    order = tuple(sorted(kept))
    return Trimmed(_rewritten(tokenizer, merges, order), order)


def _way(word: str, ranks: Mapping[tuple[str, ...], int], words: Mapping[str, int]) -> set[int]:
    """Ids of every token that BPE makes on the way from a word's symbols to the word."""
    parts, made = list(word), [*word]
    while True:
        pairs = [(ranks[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not pairs:
            return {words[part] for part in made if part in words}
        at = min(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        made.append(parts[at])


def _rewritten(tokenizer: Json, merges: Iterable[tuple[str, ...]], kept: tuple[int, ...]) -> Json:
    new = {old: i for i, old in enumerate(kept)}
    words = {word: new[i] for word, i in tokenizer["model"]["vocab"].items() if i in new}
    stay = [list(pair) for pair in merges if all(part in words for part in (*pair, "".join(pair)))]
    changes: Json = {
        "model": {**tokenizer["model"], "vocab": words, "merges": stay},
        "added_tokens": [{**token, "id": new[token["id"]]} for token in tokenizer.get("added_tokens", ())],
        "post_processor": _processor(tokenizer.get("post_processor"), new),
    }
    if tokenizer.get("padding"):
        changes["padding"] = {**tokenizer["padding"], "pad_id": new.get(tokenizer["padding"]["pad_id"], 0)}
    return {**tokenizer, **changes}


def _processor(part: Any, new: Mapping[int, int]) -> Any:
    """What puts special tokens around a text, with their new ids."""
    if not isinstance(part, dict):
        return part
    made = dict(part)
    if "processors" in part:
        made["processors"] = [_processor(inner, new) for inner in part["processors"]]
    if part["type"] == "TemplateProcessing":
        made["special_tokens"] = {
            word: {**token, "ids": [new[i] for i in token["ids"]]} for word, token in part["special_tokens"].items()
        }
    for name in ("sep", "cls"):
        if isinstance(part.get(name), list):
            made[name] = [part[name][0], new[part[name][1]]]
    return made


def named_ids(config: Mapping[str, Any]) -> set[int]:
    """Token ids that a config.json or generation_config.json names, at any depth."""
    return {i for values in _named(config) for i in values}


def _named(config: Mapping[str, Any]) -> Iterator[list[int]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _named(value)
        elif key.endswith(("token_id", "token_ids")):
            yield [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int) and i >= 0]


def renumbered(config: Mapping[str, Any], new: Mapping[int, int]) -> Json:
    """The config with new ids, and the new size where it states one; an id that has no row is none any more."""
    made: Json = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            made[key] = renumbered(value, new)
        elif key.endswith(("token_id", "token_ids")) and value is not None:
            made[key] = [new[i] for i in value if i in new] if isinstance(value, list) else new.get(value)
        else:
            made[key] = len(new) if key == "vocab_size" else value
    return made
