"""A decoder session from step to step, whatever runs it: how long each sequence is, what the mask shows, when a cache is made again."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from openclaw_opt.artifacts import GraphFacts
from openclaw_opt.backends import DecoderSession
from openclaw_opt.errors import RecipeError

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Placed = tuple[Ids, Ids, Ids, Ids]
"""Prompts as a cache wants them: ids, attention mask, positions, and the column of each last token."""


class SteppingDecoder(DecoderSession):
    """What every graph with a cache has in common; subclasses hold the cache and run the graph.

    Args:
        facts: of a decoder's graph.
        capacity: tokens a sequence may grow to after `prefill`; None for the graph's context.

    Raises:
        RecipeError: the graph is no decoder with caches.
    """

    def __init__(self, facts: GraphFacts, capacity: int | None = None) -> None:
        if facts.task != "decoder" or not facts.kv or facts.context is None:
            raise RecipeError(f"a {facts.task} graph without caches is not a decoder")
        self.facts, self.context = facts, facts.context
        self.capacity: int = min(capacity or facts.context, facts.context)
        self._lengths: Ids = np.zeros(0, np.int64)
        self._mask: Ids = np.zeros((0, 0), np.int64)
        self._seen: Ids = np.zeros((0, 0), np.int64)

    @abstractmethod
    def _start(self, batch: int) -> None:
        """Empty the cache, for `batch` sequences of at most `capacity` tokens."""

    @abstractmethod
    def _placed(self, ids: Ids, lengths: Ids) -> Placed:
        """Right-padded prompts as the cache wants them."""

    @abstractmethod
    def _grown_mask(self, mask: Ids, lengths: Ids) -> Ids:
        """The attention mask of the next step, from the last one and the tokens each sequence has had."""

    @abstractmethod
    def _last_logits(self, ids: Ids, mask: Ids, positions: Ids, columns: Ids) -> Floats:
        """One run of the graph -> [batch, vocab] float32, at the column asked for of each sequence."""

    def prefill(self, ids: Ids, lengths: Ids | None = None) -> Floats:
        """Start afresh: [batch, length], [batch] -> [batch, vocab] float32, logits at each sequence's last token."""
        batch, length = ids.shape
        check_length(length, self.capacity, "this session's capacity")
        self._lengths = np.full(batch, length, np.int64) if lengths is None else np.asarray(lengths, np.int64).copy()
        if self._lengths.shape != (batch,) or self._lengths.min() < 1 or self._lengths.max() > length:
            raise RecipeError(f"lengths {self._lengths.tolist()} do not fit ids of shape {list(ids.shape)}")
        self._start(batch)
        self._seen = ids.copy()
        ids, self._mask, positions, last = self._placed(ids, self._lengths)
        return self._last_logits(ids, self._mask, positions, last)

    def decode(self, ids: Ids) -> Floats:
        """One more token for each sequence: [batch] int64 -> [batch, vocab] float32. `prefill` comes first.

        Where a sequence grows past `recompute_after`, the whole batch is prefilled again, as `generate` of transformers does.
        """
        if ids.shape != self._lengths.shape:
            raise RecipeError(f"decode got {ids.size} tokens for a batch of {self._lengths.size} that was prefilled")
        check_length(int(self._lengths.max()) + 1, self.capacity, "this session's capacity")
        if self.facts.recompute_after is not None:
            self._seen = _appended(self._seen, ids, self._lengths)
            if (self._lengths == self.facts.recompute_after).any():
                return self.prefill(self._seen, self._lengths + 1)
        self._mask = self._grown_mask(self._mask, self._lengths)
        logits = self._last_logits(ids[:, None], self._mask, self._lengths[:, None], np.zeros_like(ids))
        self._lengths = self._lengths + 1
        return logits


def padding_first(ids: Ids, lengths: Ids) -> Placed:
    """Right-padded prompts moved to the right end, for a cache that grows by what each step adds.

    Behind a prompt padding would be a hole between it and what follows, which the mask hides but a sliding window counts.
    """
    width = ids.shape[1]
    places = np.arange(width) - (width - lengths[:, None])
    moved = np.take_along_axis(ids, places % width, axis=1)
    return moved, (places >= 0).astype(np.int64), places.clip(0), np.full_like(lengths, width - 1)


def one_column_more(mask: Ids) -> Ids:
    """The mask of the next step of a cache that grows: every sequence sees its new token."""
    return np.concatenate([mask, np.ones((len(mask), 1), np.int64)], axis=1)


def _appended(seen: Ids, ids: Ids, lengths: Ids) -> Ids:
    """Right-padded sequences with one more token each: [batch, longest + 1]."""
    longer = np.zeros((len(seen), int(lengths.max()) + 1), np.int64)
    width = min(seen.shape[1], longer.shape[1])
    longer[:, :width] = seen[:, :width]
    longer[np.arange(len(ids)), lengths] = ids
    return longer


def check_length(length: int, limit: int, what: str) -> None:
    """Raises RecipeError for an empty sequence and for one that is longer than the limit."""
    if length < 1:
        raise RecipeError("an empty prompt: a sequence needs at least one token")
    if length > limit:
        raise RecipeError(f"a sequence of {length} tokens exceeds {what} of {limit}")
