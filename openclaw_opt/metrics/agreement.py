"""agreement: does the artifact say what the checkpoint says, token by token.

    agreement.top1  share of positions where both have the same most probable token
    kl.mean         mean over positions of KL(reference ‖ artifact) = Σ p·(log p − log q), in nats

The reference's distributions are stored in float16, which leaves a floor of about 2e-6 nats. Intervals: bootstrap over sequences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from openclaw_opt.artifacts import Measurement, Task
from openclaw_opt.errors import MachineError
from openclaw_opt.metrics import Items, Metric, Number

if TYPE_CHECKING:
    from openclaw_opt.metrics.subject import Subject
    from openclaw_opt.numerics.divergence import SequenceScore


class Agreement(Metric):
    """Agreement of the most probable token, and the mean divergence."""

    summary: ClassVar[str] = "how often the most probable token is the checkpoint's, and the mean KL divergence from it"
    for_tasks: ClassVar[tuple[Task, ...]] = ("decoder",)
    needs_data: ClassVar[bool] = True
    numbers: ClassVar[tuple[Number, ...]] = (
        Number(
            "agreement.top1", "", "higher", "share of positions with the checkpoint's most probable token", ("decoder",)
        ),
        Number("kl.mean", "nat", "lower", "mean KL(reference ‖ artifact) of a position", ("decoder",)),
    )

    def measure(self, subject: Subject) -> list[Measurement]:
        opener = subject.accuracy
        if opener.open is None or subject.other_tokens:
            why = opener.why if opener.open is None else subject.other_tokens
            return self.all_unmeasured("decoder", why, subject=opener.subject)
        try:
            scores = subject.token_scores
        except MachineError as error:
            return self.all_unmeasured("decoder", error.what, subject=opener.subject)
        return agreement_rows(scores, subject=opener.subject, note=opener.note)


def agreement_rows(scores: tuple[SequenceScore, ...], *, subject: str = "engine", note: str = "") -> list[Measurement]:
    """Both numbers from scored sequences. Pure."""
    import numpy as np

    from openclaw_opt.numerics.stats import ratio_of_sums

    tokens = np.array([score.tokens for score in scores], np.float64)
    agreed = np.array([score.agreed for score in scores], np.float64)
    kl = np.array([score.kl for score in scores])
    return [
        Agreement.row(name, ratio_of_sums(sums, tokens), subject=subject, note=note, items=Items(sums, tokens))
        for name, sums in (("agreement.top1", agreed), ("kl.mean", kl))
    ]
