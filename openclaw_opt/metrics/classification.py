"""classification: how often a classifier is right, and how often it says what the checkpoint says.

    accuracy.top1           share of samples whose most probable class is the label
    accuracy.top1.recovery  that share / the checkpoint's own
    agreement.class         share of samples with the checkpoint's most probable class

Intervals: bootstrap over samples; the recovery draws the same samples for both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from openclaw_opt.artifacts import Measurement, Task
from openclaw_opt.errors import MachineError
from openclaw_opt.metrics import Items, Metric, Number

if TYPE_CHECKING:
    from openclaw_opt.backends import Floats, Ids
    from openclaw_opt.metrics.subject import Subject


class Classification(Metric):
    """Top-1 accuracy, its recovery, and agreement with the checkpoint."""

    summary: ClassVar[str] = "top-1 accuracy on labels, its recovery, and agreement with the checkpoint's classes"
    for_tasks: ClassVar[tuple[Task, ...]] = ("vision",)
    needs_data: ClassVar[bool] = True
    numbers: ClassVar[tuple[Number, ...]] = (
        Number(
            "accuracy.top1", "", "higher", "share of samples classified as labelled", ("vision",), of_checkpoint=True
        ),
        Number("accuracy.top1.recovery", "", "higher", "accuracy / the checkpoint's accuracy", ("vision",)),
        Number("agreement.class", "", "higher", "share of samples with the checkpoint's class", ("vision",)),
    )

    def measure(self, subject: Subject) -> list[Measurement]:
        opener = subject.accuracy
        if opener.open is None:
            return self.all_unmeasured("vision", opener.why, subject=opener.subject)
        from openclaw_opt.data.load import ImageSet

        assert isinstance(subject.data, ImageSet)
        try:
            ours = subject.output
        except MachineError as error:
            return self.all_unmeasured("vision", error.what, subject=opener.subject)
        reference = subject.array_reference.output("logits")
        rows = classification_rows(reference, ours, subject.data.labels, subject=opener.subject)
        return [row.model_copy(update={"note": opener.note}) for row in rows]


def classification_rows(reference: Floats, ours: Floats, labels: Ids, *, subject: str = "engine") -> list[Measurement]:
    """The three numbers, and the reference's accuracy, from logits [samples, classes] twice and labels [samples]. Pure."""
    import numpy as np

    from openclaw_opt.numerics.stats import ratio_of_hits, ratio_of_sums

    theirs, mine = reference.argmax(-1), ours.argmax(-1)
    ones = np.ones(len(labels))
    right, was_right = (mine == labels).astype(np.float64), (theirs == labels).astype(np.float64)
    rows = [
        Classification.row(name, ratio_of_sums(hits, ones), subject=who, items=Items(hits, ones))
        for name, who, hits in (
            ("accuracy.top1", subject, right),
            ("accuracy.top1", "reference", was_right),
            ("agreement.class", subject, (mine == theirs).astype(np.float64)),
        )
    ]
    if not was_right.any():
        why = "the checkpoint classifies no sample as labelled"
        return [*rows, Classification.unmeasured("accuracy.top1.recovery", why, subject=subject)]
    pairs = Items(right, was_right)
    recovery = ratio_of_hits(right, was_right)
    return [*rows, Classification.row("accuracy.top1.recovery", recovery, subject=subject, items=pairs)]
