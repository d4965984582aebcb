"""What a metric looks at: sessions that can be opened here (or why not), stored reference outputs, data, files, target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from openclaw_opt.artifacts import GraphFacts
from openclaw_opt.errors import RecipeError
from openclaw_opt.targets import Target

if TYPE_CHECKING:
    from openclaw_opt.backends import Floats, Session
    from openclaw_opt.data.load import ImageSet, OwnTokens, SentenceSet, TokenSet
    from openclaw_opt.metrics.reference import ArrayReference, TokenReference
    from openclaw_opt.numerics.divergence import SequenceScore


OTHER_TOKENS = "its vocabulary was trimmed: the same text is other tokens than the checkpoint's; compare bits per byte"


@dataclass(frozen=True)
class Opener:
    """A session that can be opened, and whose numbers it gives; `open` is None where it cannot, and `why` says it."""

    open: Callable[[], Session] | None
    subject: str = "engine"
    """`engine`, `reference`, or `engine graph on ONNX Runtime CPU`."""
    why: str = ""
    note: str = ""
    """What a reader must know of its numbers, e.g. `2 threads`."""


@dataclass(frozen=True)
class Subject:
    """One engine (or an artifact on the way to one) and everything its numbers are compared with.

    Attributes:
        facts: of the engine's graph.
        accuracy: runs the artifact for accuracy; for an engine that does not run here, its graph on ONNX Runtime.
        speed: runs the artifact for time; only the engine itself will do.
        eager: the untouched checkpoint in PyTorch, timed in turns with `speed`.
        files: what the runtime loads, for size and memory.
        original_files: the checkpoint's weight files.
        graph: folder of the graph that the roofline counts; None if there is none.
        tokenizer: the artifact's tokenizer.json; None if it has none.
        original_tokenizer: the checkpoint's, where a pass has changed it; None where they are the same.
        own: the evaluation text in the artifact's own tokens; None where these are the checkpoint's.
        load_command: arguments after `python` that open the engine in a child and print how long it took; None likewise.
        memory_command: arguments after `python` that run the engine in a child and print its peak; None where it cannot.
    """

    facts: GraphFacts
    target: Target
    accuracy: Opener
    speed: Opener
    eager: Opener
    data: TokenSet | SentenceSet | ImageSet | None = None
    reference: TokenReference | ArrayReference | None = None
    files: tuple[Path, ...] = ()
    original_files: tuple[Path, ...] = ()
    graph: Path | None = None
    tokenizer: Path | None = None
    original_tokenizer: Path | None = None
    own: OwnTokens | None = None
    load_command: tuple[str, ...] | None = None
    memory_command: tuple[str, ...] | None = None
    memory_why: str = ""

    @property
    def other_tokens(self) -> str:
        """Why numbers by the token cannot be compared with the checkpoint's; empty where they can."""
        return "" if self.own is None else OTHER_TOKENS

    @cached_property
    def token_scores(self) -> tuple[SequenceScore, ...]:
        """Every evaluation sequence against the reference, run once for all metrics."""
        from openclaw_opt.metrics.scores import score_own_tokens, score_tokens

        if self.own is not None:
            return score_own_tokens(self.accuracy, self.own, self.token_reference, self.facts.context)
        return score_tokens(self.accuracy, self.tokens, self.token_reference)

    @cached_property
    def output(self) -> Floats:
        """An encoder's embeddings or a classifier's logits on the evaluation data, run once for all metrics."""
        from openclaw_opt.metrics.scores import OUTPUT, array_outputs

        assert self.data is not None, "a metric with needs_data has data"
        return array_outputs(self.accuracy, self.data, self.facts)[OUTPUT[self.facts.task]]

    @property
    def tokens(self) -> TokenSet:
        from openclaw_opt.data.load import TokenSet

        if not isinstance(self.data, TokenSet):
            raise RecipeError("a decoder is evaluated on token sequences", where="data.evaluation")
        return self.data

    @property
    def token_reference(self) -> TokenReference:
        from openclaw_opt.metrics.reference import TokenReference

        assert isinstance(self.reference, TokenReference), "the pipeline stores a decoder's reference first"
        return self.reference

    @property
    def array_reference(self) -> ArrayReference:
        from openclaw_opt.metrics.reference import ArrayReference

        assert isinstance(self.reference, ArrayReference), "the pipeline stores the reference first"
        return self.reference
