"""embedding: do an encoder's vectors still mean what the checkpoint's mean.

    embedding.cosine.mean   mean over texts of cos(reference vector, artifact vector)
    embedding.cosine.min    the worst text
    embedding.retrieval     share of texts whose nearest neighbour among the others is the same text as with the reference

Intervals: bootstrap over texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from openclaw_opt.artifacts import Measurement, Task
from openclaw_opt.errors import MachineError
from openclaw_opt.metrics import Items, Metric, Number

if TYPE_CHECKING:
    from openclaw_opt.backends import Floats
    from openclaw_opt.metrics.subject import Subject


class Embedding(Metric):
    """Cosine similarity and agreement of nearest neighbours."""

    summary: ClassVar[str] = "cosine similarity with the checkpoint's embeddings, and agreement of nearest neighbours"
    for_tasks: ClassVar[tuple[Task, ...]] = ("encoder",)
    needs_data: ClassVar[bool] = True
    numbers: ClassVar[tuple[Number, ...]] = (
        Number("embedding.cosine.mean", "", "higher", "mean cosine with the checkpoint's embedding", ("encoder",)),
        Number("embedding.cosine.min", "", "higher", "cosine of the worst text", ("encoder",)),
        Number(
            "embedding.retrieval", "", "higher", "share of texts with the checkpoint's nearest neighbour", ("encoder",)
        ),
    )

    def measure(self, subject: Subject) -> list[Measurement]:
        opener = subject.accuracy
        if opener.open is None:
            return self.all_unmeasured("encoder", opener.why, subject=opener.subject)
        try:
            ours = subject.output
        except MachineError as error:
            return self.all_unmeasured("encoder", error.what, subject=opener.subject)
        reference = subject.array_reference.output("embedding")
        return embedding_rows(reference, ours, subject=opener.subject, note=opener.note)


def embedding_rows(reference: Floats, ours: Floats, *, subject: str = "engine", note: str = "") -> list[Measurement]:
    """The three numbers from [texts, features] twice. Pure."""
    import numpy as np

    from openclaw_opt.numerics.divergence import cosine, nearest_neighbours
    from openclaw_opt.numerics.stats import Estimate, ratio_of_sums

    similar, ones = cosine(reference, ours), np.ones(len(ours))
    mean, worst = ratio_of_sums(similar, ones), Estimate(float(similar.min()), None, None, len(ours))
    rows = [
        Embedding.row("embedding.cosine.mean", mean, subject=subject, note=note, items=Items(similar, ones)),
        Embedding.row("embedding.cosine.min", worst, subject=subject, note=note),
    ]
    if len(ours) < 2:
        return [*rows, Embedding.unmeasured("embedding.retrieval", "one text has no neighbours", subject=subject)]
    same = (nearest_neighbours(reference) == nearest_neighbours(ours)).astype(np.float64)
    share = ratio_of_sums(same, ones)
    return [*rows, Embedding.row("embedding.retrieval", share, subject=subject, note=note, items=Items(same, ones))]
