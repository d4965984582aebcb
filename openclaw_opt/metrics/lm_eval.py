"""lm-eval: EleutherAI's lm-evaluation-harness, run on the artifact and on the untouched checkpoint.

    lm_eval.accuracy           share of documents answered right, over every task that has `acc`; each document counts once
    lm_eval.accuracy.recovery  that share / the checkpoint's own, paired document by document
    lm_eval.score              lm-eval's own number of a task, once for each task and metric (`at`); no budget names it

Intervals: bootstrap over documents; the recovery draws the same documents for both. A request longer than the context
loses tokens on its left, and the note counts them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from openclaw_opt.artifacts import Measurement, Task
from openclaw_opt.errors import MachineError
from openclaw_opt.metrics import Items, Metric, Number

if TYPE_CHECKING:
    from openclaw_opt.harness.run import Result
    from openclaw_opt.metrics.subject import Opener, Subject


class LmEval(Metric):
    """Standard tasks, on the artifact and on the checkpoint, document by document."""

    summary: ClassVar[str] = "lm-evaluation-harness tasks on the artifact and the checkpoint, paired by document"
    for_tasks: ClassVar[tuple[Task, ...]] = ("decoder",)
    numbers: ClassVar[tuple[Number, ...]] = (
        Number("lm_eval.accuracy", "", "higher", "share of documents answered right", ("decoder",), of_checkpoint=True),
        Number("lm_eval.accuracy.recovery", "", "higher", "that share / the checkpoint's", ("decoder",)),
        Number("lm_eval.score", "", "neither", "lm-eval's number of one task", ("decoder",), by="task"),
    )

    tasks: tuple[str, ...] = ("python_next_line",)
    """Names of tasks or groups: those of `folder`, and lm-eval's own, whose data it downloads from the Hugging Face hub."""
    folder: str | None = None
    """A folder with task files (YAML) of your own; a relative one counts from the recipe's folder."""
    limit: Annotated[int, Field(gt=0)] | None = None
    """Documents of each task, the first ones. Default: all."""
    shots: Annotated[int, Field(ge=0)] | None = None
    """Examples before each question. Default: what the task says."""
    code: bool = False
    """Run the Python code that task files of `folder` name (`!function`)."""
    sha256: str | None = None
    """Of what `folder` holds; filled in when the recipe is read, and an error where it is given and differs."""

    @field_validator("folder")
    @classmethod
    def _found(cls, folder: str | None, info: ValidationInfo) -> str | None:
        if folder is None:
            return None
        whole = Path((info.context or {}).get("folder", Path()), folder).expanduser()
        if not whole.is_dir():
            raise ValueError(f"no such folder {folder!r}")
        return str(whole.resolve())

    @model_validator(mode="after")
    def _known(self) -> LmEval:
        from openclaw_opt.harness.tasks import digest_of

        if self.folder is None:
            return self
        holds = digest_of(Path(self.folder))
        if self.sha256 not in (None, holds):
            raise ValueError(f"the folder holds other files than the recipe says: sha256 {holds}, not {self.sha256}")
        object.__setattr__(self, "sha256", holds)
        return self

    def missing(self) -> MachineError | None:
        from openclaw_opt.harness.tasks import missing

        return missing()

    def check(self) -> None:
        """Raises RecipeError for a task that is nowhere, is named twice, or runs code unasked."""
        from openclaw_opt.harness.tasks import check_tasks

        check_tasks(self.tasks, Path(self.folder) if self.folder else None, code=self.code)

    def measure(self, subject: Subject) -> list[Measurement]:
        opener = subject.accuracy
        if opener.open is None:
            return self.all_unmeasured("decoder", opener.why, subject=opener.subject)
        if subject.tokenizer is None or subject.facts.context is None:
            why = "no tokenizer.json" if subject.tokenizer is None else "no context"
            return self.all_unmeasured("decoder", why, subject=opener.subject)
        try:
            original = subject.original_tokenizer or subject.tokenizer
            theirs = self._run(subject.eager, original, subject.facts.context)
            ours = self._run(opener, subject.tokenizer, subject.facts.context)
        except MachineError as error:
            return self.all_unmeasured("decoder", error.what, subject=opener.subject)
        return [*result_rows(theirs, ours, subject=opener.subject, note=opener.note)]

    def _run(self, opener: Opener, tokenizer: Path, context: int) -> Result:
        from openclaw_opt.backends import DecoderSession
        from openclaw_opt.harness.run import evaluate

        assert opener.open is not None
        with opener.open() as session:
            assert isinstance(session, DecoderSession)
            return evaluate(
                session,
                tokenizer.parent,
                context,
                self.tasks,
                task_folder=Path(self.folder) if self.folder else None,
                limit=self.limit,
                shots=self.shots,
            )


def result_rows(theirs: Result, ours: Result, *, subject: str = "engine", note: str = "") -> list[Measurement]:
    """The artifact's scores, the checkpoint's, and the pooled accuracy of both. Pure."""
    cut = f"{ours.truncated} tokens did not fit the context" if ours.truncated else ""
    said = "; ".join(part for part in (note, cut) if part)
    scores = [
        Measurement(
            name="lm_eval.score",
            value=score.value,
            unit="",
            better=score.better,
            samples=len(score.documents) or None,
            subject=who,
            note=said,
            at={"task": f"{score.task} {score.metric}"},
        )
        for who, result in ((subject, ours), ("reference", theirs))
        for score in result.scores
    ]
    return [*_accuracy_rows(theirs, ours, subject, said), *scores]


def _accuracy_rows(theirs: Result, ours: Result, subject: str, note: str) -> list[Measurement]:
    import numpy as np

    from openclaw_opt.numerics.stats import ratio_of_hits, ratio_of_sums

    right, was_right = (
        np.array([one for score in result.scores if score.metric == "acc" for one in score.documents])
        for result in (ours, theirs)
    )
    if not len(right):
        why = "none of the tasks says which documents were answered right (`acc`)"
        return [LmEval.unmeasured(name, why, subject=subject) for name in LmEval.budget_names()]
    ones = np.ones(len(right))
    rows = [
        LmEval.row("lm_eval.accuracy", ratio_of_sums(hits, ones), subject=who, note=note, items=Items(hits, ones))
        for who, hits in ((subject, right), ("reference", was_right))
    ]
    if not was_right.any():
        why = "the checkpoint answers no document right"
        return [*rows, LmEval.unmeasured("lm_eval.accuracy.recovery", why, subject=subject)]
    pairs, recovery = Items(right, was_right), ratio_of_hits(right, was_right)
    return [*rows, LmEval.row("lm_eval.accuracy.recovery", recovery, subject=subject, note=note, items=pairs)]
