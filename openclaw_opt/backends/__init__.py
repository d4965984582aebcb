"""One file a runtime. Each has `build(graph, target, options, folder, progress) -> Engine` and `open_engine(engine)`.

A session is a context manager; arrays it returns belong to the caller (they are copies, not views of runtime buffers).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from openclaw_opt.artifacts import GraphFacts

    Floats = NDArray[np.float32]
    Ids = NDArray[np.int64]


class Session(ABC):
    """A model that can be run here, whatever runs it."""

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free what the runtime holds."""


class GenericSession(Session):
    """An encoder or a vision model: arrays by input name in, arrays by output name out."""

    @abstractmethod
    def infer(self, feed: dict[str, NDArray[np.generic]]) -> dict[str, Floats]: ...


class DecoderSession(Session):
    """A decoder LLM with its cache inside. Sequences of a batch are right-padded; `lengths` says how long each is."""

    @abstractmethod
    def logits(self, ids: Ids) -> Floats:
        """Every position's logits without touching the cache: [batch, length] int64 -> [batch, length, vocab] float32."""

    @abstractmethod
    def prefill(self, ids: Ids, lengths: Ids | None = None) -> Floats:
        """Start afresh: [batch, length] int64, [batch] int64 -> [batch, vocab] float32, logits at each last token."""

    @abstractmethod
    def decode(self, ids: Ids) -> Floats:
        """One more token for each sequence: [batch] int64 -> [batch, vocab] float32."""


def cache_notes(facts: GraphFacts) -> tuple[str, ...]:
    """What whoever runs the engine must do about its cache; empty where a cache stays right by itself."""
    if facts.recompute_after is None:
        return ()
    return (
        f"longrope: a sequence that grows past {facts.recompute_after} tokens while decoding needs its cache made again, by one "
        "prefill of the whole sequence",
    )
