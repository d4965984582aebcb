"""perplexity: how well the artifact predicts the evaluation text, and how much of the checkpoint's own skill is left.

    perplexity            exp(Σ −log q(token) / tokens), over every token but the first of each sequence
    bits_per_byte         Σ −log₂ q(token) / UTF-8 bytes of those tokens: comparable across tokenizers
    perplexity.recovery   reference perplexity / artifact perplexity; 1 is lossless, above 1 the artifact predicts better
    bits_per_byte.recovery  the same of bits per byte

Intervals: bootstrap over sequences (tokens of one text are not independent); a recovery draws the same sequences for both.
Items: the bits of each sequence over its share of the bytes, by tokens. Perplexity is a power of bits per byte, so it has none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from openclaw_opt.artifacts import Measurement, Task
from openclaw_opt.errors import MachineError
from openclaw_opt.metrics import Items, Metric, Number

if TYPE_CHECKING:
    from openclaw_opt.metrics.subject import Subject
    from openclaw_opt.numerics.divergence import SequenceScore
    from openclaw_opt.numerics.stats import Estimate


class Perplexity(Metric):
    """Perplexity, bits per byte, and the share of them that is kept."""

    summary: ClassVar[str] = "perplexity and bits per byte on the evaluation text, and recovery of the checkpoint's own"
    for_tasks: ClassVar[tuple[Task, ...]] = ("decoder",)
    needs_data: ClassVar[bool] = True
    numbers: ClassVar[tuple[Number, ...]] = (
        Number(
            "perplexity",
            "",
            "lower",
            "exp of the mean negative log-likelihood of a token",
            ("decoder",),
            of_checkpoint=True,
        ),
        Number(
            "bits_per_byte",
            "bit/B",
            "lower",
            "negative log2-likelihood of the text by its UTF-8 bytes",
            ("decoder",),
            of_checkpoint=True,
        ),
        Number("perplexity.recovery", "", "higher", "reference perplexity / artifact perplexity", ("decoder",)),
        Number(
            "bits_per_byte.recovery", "", "higher", "reference bits per byte / artifact bits per byte", ("decoder",)
        ),
    )

    def measure(self, subject: Subject) -> list[Measurement]:
        opener = subject.accuracy
        if opener.open is None:
            return self.all_unmeasured("decoder", opener.why, subject=opener.subject)
        try:
            scores = subject.token_scores
        except MachineError as error:
            return self.all_unmeasured("decoder", error.what, subject=opener.subject)
        rows = perplexity_rows(scores, subject.tokens.bytes, subject=opener.subject, note=opener.note)
        if not subject.other_tokens:
            return rows
        by_token = ("perplexity", "perplexity.recovery")
        return [
            self.unmeasured(row.name, subject.other_tokens, subject=row.subject)
            if row.name in by_token and row.subject != "reference"
            else row
            for row in rows
        ]


def perplexity_rows(
    scores: tuple[SequenceScore, ...], text_bytes: int, *, subject: str = "engine", note: str = ""
) -> list[Measurement]:
    """The four numbers, and the reference's own two, from scored sequences. Pure."""
    import numpy as np

    from openclaw_opt.numerics.divergence import LN2
    from openclaw_opt.numerics.stats import ratio_of_sums

    tokens = np.array([score.tokens for score in scores], np.float64)
    ours = np.array([score.nll for score in scores])
    theirs = np.array([score.reference_nll for score in scores])
    tokens_per_byte = tokens.sum() / text_bytes
    rows = []
    for who, nll, more in ((subject, ours, note), ("reference", theirs, "")):
        mean = ratio_of_sums(nll, tokens)
        rows.append(Perplexity.row("perplexity", _mapped(mean, math.exp), subject=who, note=more))
        per_byte = _mapped(mean, lambda nats: nats / LN2 * tokens_per_byte)
        items = Items(nll / LN2, tokens / tokens_per_byte)
        rows.append(Perplexity.row("bits_per_byte", per_byte, subject=who, note=more, items=items))
    recovery = _mapped(ratio_of_sums(theirs - ours, tokens), math.exp)
    rows.append(Perplexity.row("perplexity.recovery", recovery, subject=subject, note=note))
    kept, pairs = ratio_of_sums(theirs, ours), Items(theirs / LN2, ours / LN2)
    return [*rows, Perplexity.row("bits_per_byte.recovery", kept, subject=subject, note=note, items=pairs)]


def _mapped(estimate: Estimate, rising: object) -> Estimate:
    """An estimate through a rising function; the interval goes through it too."""
    from dataclasses import replace

    assert callable(rising)
    low, high = (None if end is None else float(rising(end)) for end in (estimate.low, estimate.high))
    return replace(estimate, value=float(rising(estimate.value)), low=low, high=high)
