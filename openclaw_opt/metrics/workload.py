"""Inputs for timing and memory: shapes matter there, contents do not, so they are random and seeded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from openclaw_opt.artifacts import GraphFacts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from openclaw_opt.backends import Ids


def sample_prompt(facts: GraphFacts, prompt: int, new_tokens: int, batch: int = 1) -> tuple[Ids, int]:
    """Token ids [batch, prompt] and how many tokens may follow, both cut to what the graph's context allows."""
    assert facts.context is not None, "a decoder's graph states its context"
    assert facts.vocab is not None, "a decoder's graph states its vocabulary"
    new_tokens = min(new_tokens, facts.context - 1)
    prompt = max(1, min(prompt, facts.context - new_tokens))
    return np.random.default_rng(0).integers(0, facts.vocab, (batch, prompt)), new_tokens


def sample_feed(facts: GraphFacts, length: int, batch: int = 1) -> dict[str, NDArray[np.generic]]:
    """One batch of inputs of the graph's shapes: random token ids, ones as masks, zeros as types, noise as pixels."""
    random = np.random.default_rng(0)
    limit = min(length, facts.context or length)
    feed: dict[str, NDArray[np.generic]] = {}
    for name, shape in facts.batch_first_shapes.items():
        sizes = [batch, *(size if isinstance(size, int) else limit for size in shape[1:])]
        if name == "pixel_values":
            feed[name] = random.standard_normal(sizes).astype(np.float32)
        elif name == "input_ids":
            feed[name] = random.integers(0, facts.vocab or 2, sizes)
        else:
            feed[name] = np.full(sizes, int(name.endswith("mask")), np.int64)
    return feed
